"""Requests that cannot be answered, and what the mock engine says about them."""

import json
from typing import Any

import pytest
import requests

Json = dict[str, Any]

CHAT = {"messages": [{"role": "user", "content": "Say hello"}]}
MESSAGES = "/v1/chat/completions"


def post(url: str, path: str, body: Json | bytes) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(url + path, data=data, timeout=20)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (MESSAGES, b"{nope", (400, "invalid_json", None)),
        (MESSAGES, b'"text"', (400, "invalid_json", None)),
        (MESSAGES, b"[" * 100_000, (400, "invalid_json", None)),
        (MESSAGES, b"\xff\xfe\xfd", (400, "invalid_json", None)),
        (MESSAGES, {}, (400, "missing_required_parameter", "messages")),
        (MESSAGES, {"messages": []}, (400, "invalid_value", "messages")),
        (MESSAGES, {"messages": "hi"}, (400, "invalid_value", "messages")),
        (MESSAGES, {"messages": ["hi"]}, (400, "invalid_value", "messages[0]")),
        (MESSAGES, {"messages": [{"content": "x"}]}, (400, "invalid_value", "messages[0].role")),
        (
            MESSAGES,
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            (400, "invalid_value", "messages[0].content[0].text"),
        ),
        (MESSAGES, CHAT | {"max_tokens": "5"}, (400, "invalid_value", "max_tokens")),
        (MESSAGES, CHAT | {"max_tokens": 0}, (400, "invalid_value", "max_tokens")),
        (MESSAGES, CHAT | {"n": True}, (400, "invalid_value", "n")),
        (MESSAGES, CHAT | {"n": 0}, (400, "invalid_value", "n")),
        (MESSAGES, CHAT | {"stream": "yes"}, (400, "invalid_value", "stream")),
        (MESSAGES, CHAT | {"stop": [1]}, (400, "invalid_value", "stop")),
        (MESSAGES, CHAT | {"stop": ""}, (400, "invalid_value", "stop")),
        (MESSAGES, CHAT | {"temperature": 3}, (400, "invalid_value", "temperature")),
        (MESSAGES, CHAT | {"top_p": "x"}, (400, "invalid_value", "top_p")),
        (MESSAGES, CHAT | {"stream_options": {}}, (400, "invalid_value", "stream_options")),
        (
            MESSAGES,
            CHAT | {"stream": True, "stream_options": {"include_usage": 1}},
            (400, "invalid_value", "stream_options.include_usage"),
        ),
        (MESSAGES, CHAT | {"model": 5}, (400, "invalid_value", "model")),
        (MESSAGES, CHAT | {"model": "absent"}, (404, "model_not_found", "model")),
        (MESSAGES, CHAT | {"max_tokens": 4096}, (400, "context_length_exceeded", "messages")),
        ("/v1/completions", {}, (400, "missing_required_parameter", "prompt")),
        ("/v1/completions", {"prompt": [1, "x"]}, (400, "invalid_value", "prompt[0]")),
        ("/v1/completions", {"prompt": "a " * 5000}, (400, "context_length_exceeded", "prompt")),
        ("/v1/embeddings", {"input": ""}, (400, "invalid_value", "input")),
        ("/v1/embeddings", {"input": []}, (400, "invalid_value", "input")),
        ("/v1/embeddings", {"input": "x", "dimensions": 0}, (400, "invalid_value", "dimensions")),
        (
            "/v1/embeddings",
            {"input": "x", "encoding_format": "hex"},
            (400, "invalid_value", "encoding_format"),
        ),
        ("/v1/unknown", {}, (404, "not_found", None)),
        ("/v1/models", {}, (405, "method_not_allowed", None)),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong_and_where(
    engine: str, path: str, body: Json | bytes, expected: tuple[int, str, str | None]
) -> None:
    answer = post(engine, path, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == expected
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_an_unknown_model_id_is_not_found(engine: str) -> None:
    answer = requests.get(f"{engine}/v1/models/absent", timeout=20)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_a_body_over_the_limit_is_refused_as_too_large(engine: str) -> None:
    answer = requests.post(f"{engine}{MESSAGES}", data=b" " * (64 << 20) + b"{}", timeout=20)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
