"""A real model file of under 1 MB: a llama that counts.

Every word of its vocabulary points at the next one, so any prompt is answered with
` 1 2 3 ... 64` and an end-of-text token. What llama.cpp generates from it is therefore known
beforehand and still comes out of a genuine engine: tokenizer, template, attention and all.
With the engine's extension `ignore_eos` it starts again at 1 and goes on until it is stopped.

Embedding and output matrices are one-hot rows scaled so far apart that no sampling setting can
pick another token; attention and feed-forward weights are zero, so nothing else is added.
"""

from pathlib import Path

import gguf
import numpy as np

COUNTS_TO = 64
CONTEXT = 16384
EMBEDDING = 96
SPECIAL = ("<unk>", "<s>", "</s>")

_HEADS = 4
_FEED_FORWARD = 64
_NEXT, _AGAIN = 12.0, 6.0  # logit weights: what follows, and what follows where that is banned

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def counted(count: int) -> str:
    """The text that the model answers with when it is stopped after `count` tokens."""
    return "".join(f" {number % COUNTS_TO + 1}" for number in range(count))


def _vocabulary() -> tuple[list[str], list[float], list[gguf.TokenType]]:
    """Pieces, scores and types: specials, the 256 bytes, the numbers."""
    numbers = [f"\u2581{number}" for number in range(1, COUNTS_TO + 1)]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *numbers]
    types = [
        gguf.TokenType.UNKNOWN,
        gguf.TokenType.CONTROL,
        gguf.TokenType.CONTROL,
        *[gguf.TokenType.BYTE] * 256,
        *[gguf.TokenType.NORMAL] * COUNTS_TO,
    ]
    scores = [0.0] * (len(SPECIAL) + 256) + [-float(number) for number in range(COUNTS_TO)]
    return pieces, scores, types


def _matrices(vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Embedding and output matrix: dimension 0 stands for any other token, n for number n."""
    first_number = vocabulary - COUNTS_TO
    embedding = np.zeros((vocabulary, EMBEDDING), dtype=np.float32)
    output = np.zeros((vocabulary, EMBEDDING), dtype=np.float32)
    embedding[:first_number, 0] = 1.0
    # Dimensions that the output ignores: they make embeddings of different texts differ.
    spare = np.random.default_rng(1).normal(0.0, 0.2, (first_number, EMBEDDING - COUNTS_TO - 1))
    embedding[:first_number, COUNTS_TO + 1 :] = spare
    for number in range(COUNTS_TO):
        embedding[first_number + number, number + 1] = 1.0
        output[first_number + number, number] = _NEXT
    end = SPECIAL.index("</s>")
    output[end, COUNTS_TO] = _NEXT
    output[first_number, COUNTS_TO] = _AGAIN
    return embedding, output


def _add_weights(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    def zeros(rows: int, columns: int) -> np.ndarray:
        return np.zeros((rows, columns), dtype=np.float32)

    embedding, output = _matrices(vocabulary)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output.weight", output)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(EMBEDDING, dtype=np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", zeros(EMBEDDING, EMBEDDING))
    writer.add_tensor("blk.0.ffn_gate.weight", zeros(_FEED_FORWARD, EMBEDDING))
    writer.add_tensor("blk.0.ffn_up.weight", zeros(_FEED_FORWARD, EMBEDDING))
    writer.add_tensor("blk.0.ffn_down.weight", zeros(EMBEDDING, _FEED_FORWARD))


def _add_tokenizer(writer: gguf.GGUFWriter) -> int:
    """The tokenizer's fields; returns the size of the vocabulary."""
    pieces, scores, types = _vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(SPECIAL.index("<unk>"))
    writer.add_bos_token_id(SPECIAL.index("<s>"))
    writer.add_eos_token_id(SPECIAL.index("</s>"))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    return len(pieces)


def write_counting_model(path: Path, name: str = "tiny-count") -> Path:
    """Write the model to `path` and return it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_rope_dimension_count(EMBEDDING // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    vocabulary = _add_tokenizer(writer)
    writer.add_vocab_size(vocabulary)
    _add_weights(writer, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
