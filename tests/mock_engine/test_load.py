"""Pace, waiting, leaving and stopping: what the mock engine does over time."""

import concurrent.futures
import contextlib
import http.client
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from rig.mock import MOCK_ENGINE, MOCK_ENVIRONMENT, start_mock_engine
from rig.processes import Programs, wait_until

LONG = {"messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 100_000}


def health(url: str) -> dict[str, Any]:
    body: dict[str, Any] = requests.get(f"{url}/health", timeout=10).json()
    return body


def metric(url: str, name: str) -> float:
    page = requests.get(f"{url}/metrics", timeout=10).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def aborted(url: str) -> float:
    return metric(
        url, 'vllm:request_success_total{model_name="mock-model",finished_reason="abort"}'
    )


@contextlib.contextmanager
def asking(url: str, body: dict[str, Any]) -> Iterator[http.client.HTTPConnection]:
    """A connection on which the request was sent and nothing was read yet."""
    connection = http.client.HTTPConnection(str(urlsplit(url).netloc), timeout=20)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        yield connection
    finally:
        connection.close()


def test_an_answer_takes_its_prefill_and_its_tokens(run: Programs) -> None:
    _, url = start_mock_engine(
        run,
        *("--tokens-per-second", "100", "--prefill-seconds", "0.2"),
        *("--prefill-tokens-per-second", "100"),
    )
    body = {"messages": [{"role": "user", "content": "a " * 36}], "max_tokens": 30}
    started = time.monotonic()
    answer = requests.post(f"{url}/v1/chat/completions", json=body, timeout=20).json()
    prompt = answer["usage"]["prompt_tokens"]
    # Only a lower bound: a busy machine may make it longer, nothing may make it shorter.
    assert time.monotonic() - started >= 0.2 + prompt / 100 + 30 / 100 - 0.01


def test_a_stream_shows_each_token_when_it_is_made(run: Programs) -> None:
    _, url = start_mock_engine(run, "--tokens-per-second", "20")
    with asking(url, LONG | {"stream": True}) as connection:
        response = connection.getresponse()
        for _ in range(4):
            line = response.readline()
            assert line.startswith(b"data: ")
            response.readline()
        # 100,000 tokens would take over an hour; the first ones are here, so nothing is held back.
        assert health(url)["running"] == 1


def test_requests_beyond_the_limit_wait_for_a_slot_in_order(run: Programs) -> None:
    _, url = start_mock_engine(run, "--max-concurrency", "2", "--tokens-per-second", "200")
    body = {"messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 30}

    def ask(_: int) -> int:
        return requests.post(f"{url}/v1/chat/completions", json=body, timeout=30).status_code

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, number) for number in range(8)]
        wait_until(lambda: health(url)["running"] == 2, what="two running")
        assert health(url)["waiting"] > 0
        assert [call.result() for call in asked] == [200] * 8
    assert metric(url, "mock_engine:most_requests_running") == 2
    assert (health(url)["running"], health(url)["waiting"]) == (0, 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_generation(run: Programs, stream: bool) -> None:
    _, url = start_mock_engine(run, "--tokens-per-second", "50")
    for number in range(1, 6):
        with asking(url, LONG | {"stream": stream}):
            wait_until(lambda: health(url)["running"] == 1, what="running")
        wait_until(lambda: health(url)["running"] == 0, timeout=1.0, what="idle again")
        assert aborted(url) == number
    made = metric(url, 'vllm:generation_tokens_total{model_name="mock-model"}')
    assert made < 5 * 100_000


def test_a_client_that_leaves_the_queue_or_the_prefill_gives_up_its_place(run: Programs) -> None:
    _, url = start_mock_engine(run, "--max-concurrency", "1", "--prefill-seconds", "600")
    with asking(url, LONG):
        wait_until(lambda: health(url)["running"] == 1, what="first one in prefill")
        with asking(url, LONG):
            wait_until(lambda: health(url)["waiting"] == 1, what="second one waiting")
        wait_until(lambda: health(url)["waiting"] == 0, timeout=1.0, what="nobody waiting")
        assert health(url)["running"] == 1
    wait_until(lambda: health(url)["running"] == 0, timeout=1.0, what="idle again")
    assert aborted(url) == 2


def test_the_test_aid_hangs_before_the_first_token(run: Programs) -> None:
    _, url = start_mock_engine(run, "--tokens-per-second", "0")
    body = {"messages": [{"role": "user", "content": "x"}], "test_hang_seconds": 0.4}
    started = time.monotonic()
    answer = requests.post(f"{url}/v1/chat/completions", json=body, timeout=20)
    assert answer.status_code == 200
    assert time.monotonic() - started >= 0.4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_cuts_the_stream_visibly(
    run: Programs, number: signal.Signals
) -> None:
    program, url = start_mock_engine(run)
    with asking(url, LONG | {"stream": True}) as connection:
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
        program.signal(number)
        assert program.wait(5) == 0  # while the stream runs: 100,000 tokens take half an hour
        with pytest.raises(http.client.IncompleteRead) as cut:
            response.read()
        assert b"[DONE]" not in cut.value.partial


def test_every_bad_flag_is_reported_at_once(run: Programs) -> None:
    program = run.start(
        *MOCK_ENGINE,
        *("--port", "70000", "--models", "a,,b", "--tokens-per-second", "fast"),
        env=MOCK_ENVIRONMENT,
    )
    assert program.wait() == 64
    program.wait_for_line(r"--port='70000'")
    program.wait_for_line(r"--models='a,,b'")
    program.wait_for_line(r"--tokens-per-second='fast': must be a number")


def test_an_unknown_flag_is_a_usage_error_and_help_is_not(run: Programs) -> None:
    assert run.start(*MOCK_ENGINE, "--speed", "9", env=MOCK_ENVIRONMENT).wait() == 64
    assert run.start(*MOCK_ENGINE, "--help", env=MOCK_ENVIRONMENT).wait() == 0


def test_a_taken_port_is_reported(run: Programs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        program = run.start(*MOCK_ENGINE, "--port", str(port), env=MOCK_ENVIRONMENT)
        assert program.wait() == 1
        program.wait_for_line(rf"cannot listen host=127.0.0.1 port={port}")
