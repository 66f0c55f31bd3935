"""Request bodies turned into checked values."""

import math
from dataclasses import dataclass

from infinilm_babysitter.mock_engine.config import EngineConfig
from infinilm_babysitter.mock_engine.errors import ApiError, Fault
from infinilm_babysitter.mock_engine.fields import Fields, invalid, parse_object
from infinilm_babysitter.mock_engine.prompts import (
    Prompt,
    chat_prompt,
    check_length,
    text_prompts,
)

_COMPLETION_DEFAULT_TOKENS = 16  # OpenAI's default for the older completions call
_MOST_CHOICES = 128
_MOST_STOPS = 16
_MOST_INPUTS = 2048
_MAX_HANG_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A chat or completions call, checked.

    `choices` of each prompt are generated; `max_tokens` None lets an answer end by itself;
    `hang_seconds` is a test aid: the engine does nothing for so long before it begins.
    """

    model: str
    prompts: tuple[Prompt, ...]
    choices: int
    max_tokens: int | None
    stops: tuple[str, ...]
    seed: int
    stream: bool
    include_usage: bool
    echo: bool
    hang_seconds: float

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts together."""
        return sum(prompt.tokens for prompt in self.prompts)


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """An embeddings call, checked; `dimensions` is the length of every vector."""

    model: str
    inputs: tuple[Prompt, ...]
    dimensions: int
    base64: bool

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all inputs together."""
        return sum(prompt.tokens for prompt in self.inputs)


def model_not_found(model: str) -> ApiError:
    """The 404 that OpenAI clients expect for a model this engine does not serve."""
    return ApiError(Fault.MODEL_NOT_FOUND, f"The model '{model}' does not exist.", "model")


def _model(fields: Fields, config: EngineConfig) -> str:
    """The model asked for; a body that names none gets the first one served."""
    model = fields.text("model")
    if model is None:
        return config.models[0]
    if model not in config.models:
        raise model_not_found(model)
    return model


def _max_tokens(fields: Fields, config: EngineConfig, low: int) -> int | None:
    """`max_completion_tokens` is the newer name and wins over `max_tokens`."""
    newer = fields.integer("max_completion_tokens", low, config.max_model_len)
    older = fields.integer("max_tokens", low, config.max_model_len)
    return older if newer is None else newer


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.nested("stream_options")
    if options is None:
        return False
    if not stream:
        raise invalid("stream_options", "it only together with 'stream': true", {})
    return options.boolean("include_usage")


def _check_sampling(fields: Fields) -> None:
    """Fields that change nothing here, but are wrong for any engine when out of range."""
    fields.number("temperature", 0, 2)
    fields.number("top_p", 0, 1)
    fields.number("presence_penalty", -2, 2)
    fields.number("frequency_penalty", -2, 2)


def _generation(
    fields: Fields, config: EngineConfig, prompts: tuple[Prompt, ...], max_tokens: int | None
) -> GenerationRequest:
    _check_sampling(fields)
    stream = fields.boolean("stream")
    return GenerationRequest(
        model=_model(fields, config),
        prompts=prompts,
        choices=fields.integer("n", 1, _MOST_CHOICES) or 1,
        max_tokens=max_tokens,
        stops=fields.strings("stop", _MOST_STOPS),
        seed=fields.integer("seed", -(1 << 63), (1 << 64) - 1) or 0,
        stream=stream,
        include_usage=_include_usage(fields, stream),
        echo=fields.boolean("echo"),
        hang_seconds=fields.number("test_hang_seconds", 0, _MAX_HANG_SECONDS) or 0.0,
    )


def parse_chat(raw: bytes, config: EngineConfig) -> GenerationRequest:
    """A body of `/v1/chat/completions`.

    Raises:
        ApiError: the body is malformed, names an unknown model or does not fit the context.
    """
    fields = Fields(parse_object(raw))
    prompt = chat_prompt(fields)
    max_tokens = _max_tokens(fields, config, low=1)
    check_length(prompt, max_tokens, config.max_model_len, "messages")
    return _generation(fields, config, (prompt,), max_tokens)


def parse_completion(raw: bytes, config: EngineConfig) -> GenerationRequest:
    """A body of `/v1/completions`.

    Raises:
        ApiError: the body is malformed, names an unknown model or does not fit the context.
    """
    fields = Fields(parse_object(raw))
    prompts = text_prompts(fields, "prompt")
    max_tokens = _max_tokens(fields, config, low=0)
    if max_tokens is None:
        max_tokens = _COMPLETION_DEFAULT_TOKENS
    for prompt in prompts:
        check_length(prompt, max_tokens, config.max_model_len, "prompt")
    return _generation(fields, config, prompts, max_tokens)


def parse_embedding(raw: bytes, config: EngineConfig) -> EmbeddingRequest:
    """A body of `/v1/embeddings`.

    Raises:
        ApiError: the body is malformed, names an unknown model or does not fit the context.
    """
    fields = Fields(parse_object(raw))
    inputs = text_prompts(fields, "input")
    if len(inputs) > _MOST_INPUTS or not all(prompt.tokens for prompt in inputs):
        expected = f"at most {_MOST_INPUTS} inputs, none of them empty"
        raise invalid("input", expected, fields.raw("input"))
    for prompt in inputs:
        check_length(prompt, None, config.max_model_len, "input")
    encoding = fields.text("encoding_format") or "float"
    if encoding not in {"float", "base64"}:
        raise invalid("encoding_format", "'float' or 'base64'", encoding)
    return EmbeddingRequest(
        model=_model(fields, config),
        inputs=inputs,
        dimensions=fields.integer("dimensions", 1, 8192) or config.embedding_dimensions,
        base64=encoding == "base64",
    )


def prefill_seconds(prompt_tokens: int, config: EngineConfig) -> float:
    """How long the engine reads before its first token."""
    rate = config.prefill_tokens_per_second or math.inf
    return config.prefill_seconds + prompt_tokens / rate
