"""llama.cpp's genuine server, asked with the genuine SDK, directly and through the routers.

The model counts (rig/gguf_model.py), so every answer is known to the last character.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

import openai
import pytest
import requests
from openai import OpenAI, Stream
from openai.types.chat import ChatCompletionChunk, ChatCompletionUserMessageParam

from infinilm_babysitter.meter import understand
from real_engine.conftest import MODEL, SLOT_CONTEXT, Engine, wait_ready
from rig.gguf_model import COUNTS_TO, counted
from rig.processes import wait_until

HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Say hello, 你好"}]
TOO_LONG: list[ChatCompletionUserMessageParam] = [
    {"role": "user", "content": "x" * (SLOT_CONTEXT + 1000)}
]


def text_of(chunks: Stream[ChatCompletionChunk] | list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@contextlib.contextmanager
def endless(client: OpenAI) -> Iterator[Stream[ChatCompletionChunk]]:
    """A stream that goes on until the slot's context is full."""
    with client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        stream=True,
        max_tokens=SLOT_CONTEXT,
        extra_body={"ignore_eos": True},
    ) as stream:
        yield stream


def test_a_chat_is_answered_to_its_natural_end(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == counted(COUNTS_TO)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == COUNTS_TO + 1  # and the end-of-text token


def test_a_chat_ends_at_max_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=7)
    assert answer.choices[0].message.content == counted(7)
    assert answer.choices[0].finish_reason == "length"


def test_a_stream_is_whole_with_reason_and_usage(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert text_of(chunks) == counted(COUNTS_TO)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == COUNTS_TO + 1


def test_a_long_stream_loses_nothing(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        stream=True,
        max_tokens=1000,
        extra_body={"ignore_eos": True},
    ) as stream:
        assert text_of(stream) == counted(1000)


def test_completions_are_answered_whole_and_streamed(client: OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="Once", max_tokens=9)
    assert whole.choices[0].text == counted(9)
    with client.completions.create(model=MODEL, prompt="Once", max_tokens=9, stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == counted(9)


def test_embeddings_are_made_in_both_encodings(client: OpenAI) -> None:
    texts = ["a cat", "a dog", "a cat"]
    packed = client.embeddings.create(model=MODEL, input=texts).data
    plain = client.embeddings.create(model=MODEL, input=texts, encoding_format="float").data
    assert [item.index for item in packed] == [0, 1, 2]
    for one, other in zip(packed, plain, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert packed[0].embedding == pytest.approx(packed[2].embedding, abs=1e-6)
    assert packed[0].embedding != pytest.approx(packed[1].embedding, abs=1e-3)


def test_the_model_is_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_prompt_longer_than_the_context_is_a_bad_request(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as whole:
        client.chat.completions.create(model=MODEL, messages=TOO_LONG)
    with pytest.raises(openai.BadRequestError) as streamed:
        client.chat.completions.create(model=MODEL, messages=TOO_LONG, stream=True)
    for refused in (whole, streamed):
        assert refused.value.type == "exceed_context_size_error"


def test_bad_json_is_a_bad_request(endpoint: str) -> None:
    answer = requests.post(f"{endpoint}/v1/chat/completions", data=b'{"model": nope', timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_client_that_leaves_frees_its_slot_at_once(client: OpenAI, engine: Engine) -> None:
    for _ in range(3):
        with endless(client) as stream:
            for _, chunk in zip(range(5), stream, strict=False):
                assert chunk.choices
            assert engine.busy_slots() == 1
        wait_until(lambda: engine.busy_slots() == 0, timeout=1.0, what="all slots idle")


def test_an_engine_killed_in_mid_stream_is_an_error_and_comes_back(
    client: OpenAI, engine: Engine, endpoint: str
) -> None:
    wait_until(engine.pid, what="an engine to kill")
    victim = engine.pid()
    assert victim is not None
    seen: list[ChatCompletionChunk] = []

    def read_and_kill() -> None:
        with endless(client) as stream:
            for chunk in stream:
                seen.append(chunk)
                if len(seen) == 20:
                    os.kill(victim, signal.SIGKILL)

    with pytest.raises(openai.APIError):
        read_and_kill()
    # Everything that came before the cut is right, and nothing pretends that the answer is over.
    text = text_of(seen)
    assert counted(SLOT_CONTEXT).startswith(text)
    assert not any(chunk.choices[0].finish_reason for chunk in seen if chunk.choices)
    wait_ready(endpoint)
    assert engine.pid() != victim
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == counted(COUNTS_TO)


def test_the_router_retrieves_the_model_by_id(routed: OpenAI) -> None:
    model = routed.models.retrieve(MODEL)
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "llamacpp")


def test_an_unknown_model_is_not_found_by_the_router(routed: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        routed.chat.completions.create(model="absent", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        routed.models.retrieve("absent")


def test_the_router_says_which_engine_answered(routed: OpenAI) -> None:
    raw = routed.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, max_tokens=1
    )
    assert raw.headers["x-infinilm-service"] == "tiny-server"
    assert raw.headers["x-request-id"]


def test_its_metrics_show_that_tokens_flow_while_one_answer_is_made(
    engine: Engine, client: OpenAI
) -> None:
    def counters() -> tuple[float, ...]:
        understood = understand(requests.get(f"{engine.url}/metrics", timeout=5).text)
        assert understood is not None
        return understood[1].progress

    wait_until(lambda: engine.liveness() == "ok", what="idle")
    with endless(client) as stream:
        next(iter(stream))
        wait_until(lambda: engine.liveness() == "busy", what="seen at work")
        seen = counters()
        wait_until(lambda: counters() != seen, what="counters move before the answer ends")
        assert engine.busy_slots() == 1
    wait_until(lambda: engine.liveness() == "ok", what="idle again")
