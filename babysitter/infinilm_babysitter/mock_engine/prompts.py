"""What a request gives the engine to read: chat messages, prompts, inputs of embeddings."""

import json
from dataclasses import dataclass
from typing import Any

from infinilm_babysitter.mock_engine.errors import ApiError, Fault
from infinilm_babysitter.mock_engine.fields import Fields, invalid, missing
from infinilm_babysitter.mock_engine.text import count_tokens

# What a chat template adds around each message, in tokens.
_TOKENS_PER_MESSAGE = 4
_QUOTED = 60


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text to answer: its length in tokens, what to say about it, what it hashes to."""

    text: str
    tokens: int
    facts: str
    identity: bytes


def _quote(text: str) -> str:
    """The beginning of the text, on one line and between quotes."""
    line = " ".join(text[: 2 * _QUOTED].split())
    return f'"{line}"' if len(line) <= _QUOTED else f'"{line[:_QUOTED]}..."'


def _identity(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _part_text(part: Any, where: str) -> str:
    """The text of one content part; parts of other types (images, audio) have none."""
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise invalid(where, "an object with a 'type'", part)
    if part["type"] != "text":
        return ""
    if not isinstance(part.get("text"), str):
        raise invalid(f"{where}.text", "a string", part.get("text"))
    text: str = part["text"]
    return text


def _message_text(message: Any, where: str) -> str:
    if not isinstance(message, dict):
        raise invalid(where, "an object with 'role' and 'content'", message)
    if not isinstance(message.get("role"), str):
        raise invalid(f"{where}.role", "a string", message.get("role"))
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{where}.content", "a string or a list of parts", content)
    parts = [_part_text(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
    return "".join(parts)


def chat_prompt(fields: Fields) -> Prompt:
    """The messages of a chat as one prompt.

    Raises:
        ApiError: `messages` is missing or malformed.
    """
    messages = fields.raw("messages")
    if messages is None:
        raise missing("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", "a list of at least one message", messages)
    texts = [_message_text(message, f"messages[{i}]") for i, message in enumerate(messages)]
    tokens = sum(map(count_tokens, texts)) + _TOKENS_PER_MESSAGE * len(texts)
    facts = (
        f"Your request has {_plural(len(texts), 'message')} and {_plural(tokens, 'prompt token')}; "
        f"the last message says: {_quote(texts[-1])}."
    )
    return Prompt(text=texts[-1], tokens=tokens, facts=facts, identity=_identity(messages))


def _is_token_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _text_or_tokens(value: Any, where: str) -> Prompt:
    if _is_token_list(value):
        text, tokens, facts = "", len(value), f"Your prompt has {_plural(len(value), 'token')}."
    elif isinstance(value, str):
        text, tokens = value, count_tokens(value)
        facts = f"Your prompt has {_plural(tokens, 'token')} and says: {_quote(value)}."
    else:
        raise invalid(where, "a string or a list of token ids", value)
    return Prompt(text=text, tokens=tokens, facts=facts, identity=_identity(value))


def text_prompts(fields: Fields, key: str) -> tuple[Prompt, ...]:
    """The value of `key` in any of OpenAI's four forms: text, texts, token ids, lists of those.

    Raises:
        ApiError: it is missing, empty or of another form.
    """
    value = fields.raw(key)
    if value is None:
        raise missing(key)
    if isinstance(value, str) or _is_token_list(value):
        return (_text_or_tokens(value, key),)
    if not isinstance(value, list) or not value:
        raise invalid(key, "a string, a list of strings or lists of token ids", value)
    return tuple(_text_or_tokens(item, f"{key}[{i}]") for i, item in enumerate(value))


def check_length(prompt: Prompt, max_tokens: int | None, limit: int, param: str) -> None:
    """Refuse what would not fit into the model's context.

    Raises:
        ApiError: prompt and answer together are longer than `limit` tokens.
    """
    wanted = prompt.tokens + (max_tokens or 0)
    if wanted > limit:
        raise ApiError(
            Fault.CONTEXT_LENGTH,
            f"This model's maximum context length is {limit} tokens, but the request needs "
            f"{wanted}: {prompt.tokens} in '{param}' and {max_tokens or 0} for the answer.",
            param,
        )
