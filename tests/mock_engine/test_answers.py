"""What the mock engine answers, read as plain HTTP."""

import base64
import json
import struct
from typing import Any

import pytest
import requests

Json = dict[str, Any]

CHAT = {"messages": [{"role": "user", "content": "Say hello"}]}


def post(url: str, path: str, body: Json | bytes) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(url + path, data=data, timeout=20)


def chat(url: str, **more: Any) -> Json:
    answer = post(url, "/v1/chat/completions", CHAT | more)
    assert answer.status_code == 200, answer.text
    body: Json = answer.json()
    return body


def events(url: str, path: str, body: Json) -> list[Json]:
    """The events of a streamed answer, which must end with `[DONE]`."""
    answer = post(url, path, body | {"stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    *data, last = answer.content.split(b"\n\n")[:-1]
    assert answer.content.endswith(b"\n\n")
    assert last == b"data: [DONE]"
    assert all(event.startswith(b"data: ") for event in data)
    return [json.loads(event[6:]) for event in data]


def text_of(body: Json) -> str:
    text: str = body["choices"][0]["message"]["content"]
    return text


def test_the_answer_says_who_answers_and_what_was_asked(engine: str) -> None:
    text = text_of(chat(engine, model="small"))
    assert "mock engine, serving as 'small'" in text
    assert '"Say hello"' in text
    assert "deployment_configs/babysitters/" in text


def test_the_same_request_has_the_same_answer(engine: str) -> None:
    one, two = (chat(engine, model="small", max_tokens=300) for _ in range(2))
    assert text_of(one) == text_of(two)
    assert one["usage"] == two["usage"]
    assert one["id"] != two["id"]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "org/big:v1"},
        {"seed": 7},
        {"messages": [{"role": "system", "content": "x"}, *CHAT["messages"]]},
    ],
)
def test_another_request_has_another_answer(engine: str, change: Json) -> None:
    base = {"model": "small", "max_tokens": 300}
    assert text_of(chat(engine, **base)) != text_of(chat(engine, **(base | change)))


def test_more_tokens_continue_the_same_text(engine: str) -> None:
    short, long = (text_of(chat(engine, max_tokens=count)) for count in (150, 400))
    assert long.startswith(short)
    assert len(long) > len(short)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_exactly_max_tokens_are_generated(engine: str, field: str) -> None:
    body = chat(engine, **{field: 123})
    assert body["usage"]["completion_tokens"] == 123
    assert body["choices"][0]["finish_reason"] == "length"
    total = body["usage"]["prompt_tokens"] + 123
    assert body["usage"]["total_tokens"] == total


def test_without_max_tokens_the_answer_ends_by_itself(engine: str) -> None:
    assert chat(engine)["choices"][0]["finish_reason"] == "stop"


def test_a_stream_is_role_then_text_then_reason_then_usage(engine: str) -> None:
    whole = chat(engine, max_tokens=60)
    chunks = events(
        engine,
        "/v1/chat/completions",
        CHAT | {"max_tokens": 60, "stream_options": {"include_usage": True}},
    )
    first, *middle, last, counts = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == text_of(whole)
    assert len(middle) == 60
    assert last["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "length",
    }
    assert counts["choices"] == []
    assert counts["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_a_stream_without_include_usage_has_no_usage(engine: str) -> None:
    chunks = events(engine, "/v1/chat/completions", CHAT | {"max_tokens": 3})
    assert not any("usage" in chunk for chunk in chunks)


def test_choices_of_a_stream_are_interleaved_and_each_is_whole(engine: str) -> None:
    request = CHAT | {"n": 3, "max_tokens": 50}
    whole = post(engine, "/v1/chat/completions", request).json()
    texts = {choice["index"]: choice["message"]["content"] for choice in whole["choices"]}
    assert len(set(texts.values())) == 3
    assert whole["usage"]["completion_tokens"] == 150
    streamed = dict.fromkeys(texts, "")
    reasons = []
    for chunk in events(engine, "/v1/chat/completions", request):
        (choice,) = chunk["choices"]
        streamed[choice["index"]] += choice["delta"].get("content", "")
        reasons.append(choice["finish_reason"])
    assert streamed == texts
    assert reasons.count("length") == 3


@pytest.mark.parametrize("stop", ["mock engine", [" nowhere", " mock engine, ser"]])
def test_text_ends_before_a_stop_string(engine: str, stop: Any) -> None:
    free = text_of(chat(engine))
    body = chat(engine, stop=stop)
    expected = free[: free.index(stop if isinstance(stop, str) else stop[1])]
    assert text_of(body) == expected
    assert body["choices"][0]["finish_reason"] == "stop"
    chunks = events(engine, "/v1/chat/completions", CHAT | {"stop": stop})
    streamed = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert streamed == expected


def test_content_parts_are_read_like_a_string(engine: str) -> None:
    parts = [
        {"type": "text", "text": "Say "},
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "text", "text": "hello"},
    ]
    body = chat(engine, messages=[{"role": "user", "content": parts}])
    assert '"Say hello"' in text_of(body)


def test_characters_come_back_as_they_were_sent(engine: str) -> None:
    said = "你好, naïve \U0001f600"
    answer = post(engine, "/v1/chat/completions", {"messages": [{"role": "user", "content": said}]})
    assert said.encode() in answer.content
    lone = post(
        engine,
        "/v1/chat/completions",
        b'{"messages":[{"role":"user","content":"half \\ud83d"}]}',
    )
    assert "half \ud83d" in text_of(lone.json())


def test_unknown_fields_are_ignored(engine: str) -> None:
    assert text_of(chat(engine, repetition_penalty=1.1, chat_template_kwargs={"a": 1})) == text_of(
        chat(engine)
    )


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings"])
def test_calls_work_with_and_without_v1(engine: str, path: str) -> None:
    request = CHAT | {"prompt": "once", "input": "once", "max_tokens": 9}
    with_prefix, without = (post(engine, prefix + path, request).json() for prefix in ("/v1", ""))
    for body in (with_prefix, without):
        body.pop("id", None)
        body.pop("created", None)
    assert with_prefix == without


def test_completions_answer_every_prompt_in_order(engine: str) -> None:
    body = post(
        engine,
        "/v1/completions",
        {"prompt": ["one", "two"], "n": 2, "max_tokens": 200, "echo": True},
    ).json()
    assert body["object"] == "text_completion"
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    starts = [choice["text"][:3] for choice in body["choices"]]
    assert starts == ["one", "one", "two", "two"]
    assert len({choice["text"] for choice in body["choices"]}) == 4
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 800, "total_tokens": 802}


def test_completions_default_to_sixteen_tokens_and_stream_them(engine: str) -> None:
    whole = post(engine, "/v1/completions", {"prompt": "once"}).json()
    assert whole["usage"]["completion_tokens"] == 16
    chunks = events(engine, "/v1/completions", {"prompt": "once"})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_completions_may_ask_for_no_tokens_at_all(engine: str) -> None:
    request = {"prompt": "once", "max_tokens": 0, "echo": True}
    (choice,) = post(engine, "/v1/completions", request).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("once", "length")
    chunks = events(engine, "/v1/completions", request)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "length"]


def test_completions_take_token_ids(engine: str) -> None:
    body = post(engine, "/v1/completions", {"prompt": [[1, 2, 3], [4, 5]]}).json()
    assert len(body["choices"]) == 2
    assert body["usage"]["prompt_tokens"] == 5


def test_embeddings_are_unit_vectors_in_both_encodings(engine: str) -> None:
    request = {"model": "small", "input": ["a cat", "a dog"], "dimensions": 64}
    plain = post(engine, "/v1/embeddings", request).json()
    packed = post(engine, "/v1/embeddings", request | {"encoding_format": "base64"}).json()
    for item, other in zip(plain["data"], packed["data"], strict=True):
        vector = item["embedding"]
        assert len(vector) == 64
        assert sum(value * value for value in vector) == pytest.approx(1)
        assert struct.unpack("<64f", base64.b64decode(other["embedding"])) == pytest.approx(vector)
    assert plain["data"][0]["embedding"] != plain["data"][1]["embedding"]
    assert plain["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_models_are_listed_and_found_by_id(engine: str) -> None:
    listed = requests.get(f"{engine}/v1/models", timeout=20).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["small", "org/big:v1"]
    assert listed == requests.get(f"{engine}/models", timeout=20).json()
    for spelling in ("org/big:v1", "org%2Fbig:v1", "org%2Fbig%3Av1"):
        found = requests.get(f"{engine}/v1/models/{spelling}", timeout=20)
        assert found.json() == listed["data"][1]


def test_health_and_metrics_tell_that_it_is_idle(engine: str) -> None:
    chat(engine, model="small")
    health = requests.get(f"{engine}/health", timeout=20).json()
    assert (health["status"], health["running"], health["waiting"]) == ("ok", 0, 0)
    metrics = requests.get(f"{engine}/metrics", timeout=20).text
    assert 'vllm:num_requests_running{model_name="small"} 0' in metrics
    assert 'vllm:request_success_total{model_name="small",finished_reason="stop"}' in metrics
