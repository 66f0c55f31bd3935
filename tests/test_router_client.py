"""`RouterClient` and its commands, against the mock engine and against answers that are wrong.

The mock engine answers the calls a router shares with it (health, models, chat); what only a
router has (stats, services) comes from a canned server, which can also misbehave.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from infinilm_router.client import RefusedError, RouterClient, StreamError, UnreachableError
from infinilm_router.client_cli import main
from rig.mock import start_mock_engine
from rig.processes import ROOT, Programs, free_port, programs

HELLO = [{"role": "user", "content": "Say hello"}]
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    with programs() as run:
        _, url = start_mock_engine(run, "--tokens-per-second", "0", "--models", "m,org/b:v1")
        yield url


@pytest.fixture
def client(engine: str) -> Iterator[RouterClient]:
    with RouterClient(engine) as made:
        yield made


@contextlib.contextmanager
def canned(answer: bytes) -> Iterator[str]:
    """A server that gives one connection this answer, whatever is asked, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        serving = threading.Thread(target=serve)
        serving.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving.join(10)


def sized(body: bytes, head: str = "HTTP/1.1 200 OK") -> bytes:
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def stream(client: RouterClient) -> list[str]:
    return [
        chunk["choices"][0]["delta"].get("content", "")
        for chunk in client.chat_stream(HELLO)
        if chunk["choices"]
    ]


def test_models_and_health_and_chat(client: RouterClient) -> None:
    assert client.health()["status"] == "ok"
    assert [model["id"] for model in client.models()] == ["m", "org/b:v1"]
    assert client.model("org/b:v1")["id"] == "org/b:v1"
    answer = client.chat(HELLO, "m", max_tokens=5)
    assert answer["usage"]["completion_tokens"] == 5


def test_a_stream_gives_what_a_whole_answer_gives(client: RouterClient) -> None:
    whole = client.chat(HELLO, "m", max_tokens=30)["choices"][0]["message"]["content"]
    chunks = client.chat_stream(HELLO, "m", max_tokens=30)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == whole


def test_leaving_a_stream_early_ends_the_generation(run: Programs) -> None:
    program, url = start_mock_engine(run)
    with RouterClient(url) as client:
        chunks = client.chat_stream(HELLO, max_tokens=100_000)
        assert next(chunks)["choices"]
        chunks.close()
        program.wait_for_line("finish=aborted", timeout=5)


def test_stats_and_services_are_read() -> None:
    with canned(sized(b'{"total_services": 3}')) as url, RouterClient(url) as client:
        assert client.stats() == {"total_services": 3}
    with canned(sized(b'{"services": [{"name": "a"}]}')) as url, RouterClient(url) as client:
        assert client.services() == [{"name": "a"}]


def test_a_refusal_tells_status_code_and_message(client: RouterClient) -> None:
    with pytest.raises(RefusedError) as refused:
        client.chat(HELLO, "absent")
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")
    assert "absent" in refused.value.message


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"error": {"message": "busy", "code": "overloaded"}}', "overloaded", "busy"),
        (b'{"error": "busy"}', "", "busy"),
        (b"busy\n", "", "busy"),
        (b"[1]", "", "[1]"),
        (b"", "", "the answer has no text"),
    ],
)
def test_any_shape_of_error_is_understood(body: bytes, code: str, message: str) -> None:
    answer = sized(body, "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1.5")
    with canned(answer) as url, RouterClient(url) as client:
        with pytest.raises(RefusedError) as refused:
            client.health()
        assert (refused.value.code, refused.value.message) == (code, message)
        assert refused.value.retry_after == 1.5


def test_a_redirect_is_a_refusal_and_not_followed() -> None:
    answer = sized(b"", "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/")
    with canned(answer) as url, RouterClient(url) as client, pytest.raises(RefusedError):
        client.health()


def test_an_answer_that_is_no_json_object_is_refused() -> None:
    no_object = pytest.raises(RefusedError, match="did not answer with a JSON object")
    with canned(sized(b"<html>")) as url, RouterClient(url) as client, no_object:
        client.health()


def test_nobody_there_is_unreachable() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with RouterClient(url) as client, pytest.raises(UnreachableError, match=url):
        client.health()


def test_silence_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with RouterClient(url, timeout=0.2) as client, pytest.raises(UnreachableError):
            client.health()


def event(content: str) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {"content": content}}]}
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


def test_comments_split_lines_and_carriage_returns_are_read_by_the_book() -> None:
    answer = (
        STREAM_HEAD
        + b"Connection: close\r\n\r\n: keep-alive\n\n"
        + event("你好").replace(b"\n", b"\r\n")
        + b'event: x\ndata: {"choices":\ndata: []}\n\n'
        + event("!")
        + b"data: [DONE]\n\n"
        + event("after the end")
    )
    with canned(answer) as url, RouterClient(url) as client:
        assert stream(client) == ["你好", "!"]


@pytest.mark.parametrize(
    "end",
    [
        b'data: {"error": {"message": "gone", "type": "upstream_error", "code": "reset"}}\n\n',
        b"data: {nope\n\n",
        b"data: []\n\n",
    ],
)
def test_a_stream_that_says_it_failed_raises_after_what_was_good(end: bytes) -> None:
    with canned(STREAM_HEAD + b"\r\n" + event("so far") + end) as url, RouterClient(url) as client:
        chunks = client.chat_stream(HELLO)
        assert next(chunks)["choices"][0]["delta"]["content"] == "so far"
        with pytest.raises(StreamError):
            next(chunks)


def test_a_stream_that_is_cut_off_raises() -> None:
    part = event("so far")
    cut = STREAM_HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(part) + part + b"\r\n"
    with canned(cut) as url, RouterClient(url) as client:
        chunks = client.chat_stream(HELLO)
        assert next(chunks)["choices"]
        with pytest.raises(StreamError, match="cut off"):
            next(chunks)


def test_the_key_is_sent_and_environment_proxies_are_not_used(
    monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with RouterClient(engine, api_key="sesame") as client:
        assert client.health()["status"] == "ok"
        assert client._session.headers["Authorization"] == "Bearer sesame"


def test_the_earlier_names_still_work(client: RouterClient) -> None:
    assert client.check_router_health()
    assert client.test_router_connection()
    assert [m["id"] for m in (client.get_models() or {})["data"]] == ["m", "org/b:v1"]
    assert (client.chat_completions(HELLO, "m", max_tokens=4) or {})["choices"]
    assert client.chat_completions(HELLO, "absent") is None
    assert client.get_router_stats() is None  # an engine has none


def test_the_script_prints_what_was_asked_for(run: Programs, engine: str) -> None:
    script = ROOT / "router-python" / "router_client.py"
    program = run.python(script, "--router", engine, "models")
    assert program.wait() == 0
    program.wait_for_line("org/b:v1")
    ask = (script, "--router", engine, "chat", "Say hello", "--model", "m")
    streamed, whole = run.python(*ask), run.python(*ask, "--no-stream")
    assert (streamed.wait(), whole.wait()) == (0, 0)
    shown, expected = (
        program.wait_for_line("^This is the .* serving as 'm'.*launch again.$")
        for program in (streamed, whole)
    )
    assert shown.string == expected.string


def test_a_failed_command_says_why(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--router", engine, "chat", "x", "--model", "absent"]) == 1
    assert "404 model_not_found: The model 'absent'" in capsys.readouterr().err
    assert main(["--router", f"http://127.0.0.1:{free_port()}", "health"]) == 1
    assert "is the router running" in capsys.readouterr().err
    assert main(["dance"]) == 64
