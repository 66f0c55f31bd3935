"""The JSON of answers: OpenAI's objects for chat, completions, embeddings and models."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from infinilm_babysitter.mock_engine.bodies import EmbeddingRequest, GenerationRequest
from infinilm_babysitter.mock_engine.text import Generation
from infinilm_babysitter.mock_engine.vectors import embed, to_base64

Json = dict[str, Any]


def usage(prompt_tokens: int, running: Sequence[Generation]) -> Json:
    """Token counts of one request; the same streamed or not."""
    generated = sum(generation.tokens for generation in running)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
    }


class Shape(ABC):
    """How one kind of call dresses its answers; id and time of creation are made once."""

    id_prefix: str
    object_whole: str
    object_chunk: str

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self._id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def envelope(self, *, stream: bool) -> Json:
        """The outer object, without choices and usage."""
        return {
            "id": self._id,
            "object": self.object_chunk if stream else self.object_whole,
            "created": self._created,
            "model": self.request.model,
        }

    @abstractmethod
    def whole(self, index: int, text: str, finish_reason: str | None) -> Json:
        """A choice of an answer that is sent in one piece."""

    @abstractmethod
    def first(self, index: int) -> Json | None:
        """The choice of a stream's opening chunk, if this kind has one."""

    @abstractmethod
    def piece(self, index: int, text: str) -> Json:
        """The choice of a chunk that carries text."""

    @abstractmethod
    def last(self, index: int, finish_reason: str | None) -> Json:
        """The choice of the chunk that says why the text ended."""


def _choice(index: int, finish_reason: str | None, **content: Any) -> Json:
    return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}


class ChatShape(Shape):
    """`chat.completion` and its chunks."""

    id_prefix = "chatcmpl"
    object_whole = "chat.completion"
    object_chunk = "chat.completion.chunk"

    def whole(self, index: int, text: str, finish_reason: str | None) -> Json:
        """The answer as one message."""
        return _choice(index, finish_reason, message={"role": "assistant", "content": text})

    def first(self, index: int) -> Json:
        """Who speaks, before any text."""
        return _choice(index, None, delta={"role": "assistant", "content": ""})

    def piece(self, index: int, text: str) -> Json:
        """Text that continues the message."""
        return _choice(index, None, delta={"content": text})

    def last(self, index: int, finish_reason: str | None) -> Json:
        """An empty delta with the reason."""
        return _choice(index, finish_reason, delta={})


class CompletionShape(Shape):
    """`text_completion`, whose chunks look like the whole."""

    id_prefix = "cmpl"
    object_whole = "text_completion"
    object_chunk = "text_completion"

    def _echoed(self, index: int) -> str:
        prompt = self.request.prompts[index // self.request.choices]
        return prompt.text if self.request.echo else ""

    def whole(self, index: int, text: str, finish_reason: str | None) -> Json:
        """The answer, after the prompt if that is to be echoed."""
        return _choice(index, finish_reason, text=self._echoed(index) + text)

    def first(self, index: int) -> Json | None:
        """The echoed prompt, if asked for."""
        text = self._echoed(index)
        return _choice(index, None, text=text) if text else None

    def piece(self, index: int, text: str) -> Json:
        """Text that continues the answer."""
        return _choice(index, None, text=text)

    def last(self, index: int, finish_reason: str | None) -> Json:
        """No text, but the reason."""
        return _choice(index, finish_reason, text="")


def embedding_list(request: EmbeddingRequest) -> Json:
    """The answer of `/v1/embeddings`."""
    vectors = [embed(prompt, request.dimensions) for prompt in request.inputs]
    encode = to_base64 if request.base64 else list
    data = [
        {"object": "embedding", "index": index, "embedding": encode(vector)}
        for index, vector in enumerate(vectors)
    ]
    tokens = request.prompt_tokens
    return {
        "object": "list",
        "data": data,
        "model": request.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def model_object(model: str, created: int, max_model_len: int) -> Json:
    """One entry of the models list; `created` is the wall-clock second the engine started."""
    return {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "infinilm-mock",
        "max_model_len": max_model_len,
    }
