"""Check that requests survive an engine that hangs and is restarted.

Some of the requests carry `test_hang_seconds`, which makes InfiniLM's server (and the mock
engine) sleep. Where that is longer than the engine's `--request-timeout`, the engine ends
itself and its babysitter starts it again; what failed meanwhile is sent again without the hang.

    python tests/test_timeout_recovery.py --url http://localhost:8000 --requests 20 \
        --hang-frequency 0.2 --test-hang-seconds 35 --concurrency 10 --stream

Exit code 0: every request was answered in the end; 1: some were not; 64: wrong flags.
"""

import argparse
import asyncio
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import requests

from rig.chat_probe import Asked, ask, chat_url, pick_model, session_with_timeout
from rig.mock import start_mock_engine
from rig.processes import Programs, free_port, wait_until


@dataclass(frozen=True)
class Recovered:
    """One request, all its attempts taken together; `seconds` includes the waits between."""

    last: Asked
    attempts: int
    hung: bool
    seconds: float


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Check recovery from engines that hang.")
    add = parser.add_argument
    add("--url", default="http://localhost:8000", help="base address (default %(default)s)")
    add("--requests", type=int, default=20, help="how many to send (default 20)")
    add("--hang-frequency", type=float, default=0.0, help="share that hangs, 0 to 1 (default 0)")
    add("--test-hang-seconds", type=float, default=35, help="how long they hang (default 35)")
    add("--concurrency", type=int, default=10, help="most requests at once (default 10)")
    add("--stream", action="store_true", help="ask for streams")
    add("--max-retries", type=int, default=10, help="more attempts per request (default 10)")
    add("--retry-delay", type=float, default=10.0, help="seconds between them (default 10)")
    add("--model", help="model id (default: the first one that the endpoint lists)")
    add("--timeout", type=float, default=60.0, help="seconds for one attempt (default 60)")
    return parser


def hanging(requests_: int, frequency: float) -> set[int]:
    """Which requests hang: the wanted share, spread evenly and the same in every run."""
    count = int(requests_ * frequency)
    return {number * requests_ // count for number in range(count)} if count else set()


def worth_another_try(asked: Asked) -> bool:
    """No answer, a broken one, or a refusal that heals by itself."""
    return not asked.ok and (asked.status in {0, 200, 429} or asked.status >= 500)


async def ask_until_answered(
    session: aiohttp.ClientSession, arguments: argparse.Namespace, body: dict[str, Any], hang: bool
) -> Recovered:
    """One request with its retries; only the first attempt hangs."""
    url = chat_url(arguments.url)
    started = time.monotonic()
    extra = {"test_hang_seconds": arguments.test_hang_seconds} if hang else {}
    attempts = 0
    while True:
        asked = await ask(session, url, body | extra)
        attempts += 1
        if attempts > arguments.max_retries or not worth_another_try(asked):
            return Recovered(asked, attempts, hang, time.monotonic() - started)
        await asyncio.sleep(arguments.retry_delay)
        extra = {}


async def ask_all(arguments: argparse.Namespace) -> list[Recovered]:
    """All requests, at most `--concurrency` of them at once."""
    free = asyncio.Semaphore(arguments.concurrency)
    hang = hanging(arguments.requests, arguments.hang_frequency)

    async with session_with_timeout(arguments.timeout) as session:
        model = await pick_model(session, arguments.url, arguments.model)
        print(f"{arguments.requests} requests to {arguments.url}, model {model}, {len(hang)} hang")

        async def one(number: int) -> Recovered:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": f"Test request {number}. Say hello."}],
                "max_tokens": 50,
                "stream": arguments.stream,
            }
            async with free:
                return await ask_until_answered(session, arguments, body, number in hang)

        return await asyncio.gather(*(one(number) for number in range(arguments.requests)))


def report(results: Sequence[Recovered]) -> bool:
    """Print what was seen; true if every request was answered."""
    for number, result in enumerate(results):
        state = "ok" if result.last.ok else f"FAILED status {result.last.status}"
        hung = "hung" if result.hung else "    "
        print(
            f"  request {number:>3}  {result.seconds:7.2f} s  {result.attempts} attempts  "
            f"{hung}  {state} {result.last.fault}".rstrip()
        )
    good = [result.seconds for result in results if result.last.ok]
    print(f"answered   {len(good)} of {len(results)}")
    print(f"retried    {sum(result.attempts > 1 for result in results)}")
    print(f"attempts   {sum(result.attempts for result in results)}")
    if good:
        middle = statistics.median(good)
        print(f"seconds    min {min(good):.2f}  median {middle:.2f}  max {max(good):.2f}")
    passed = len(good) == len(results)
    print("PASS" if passed else "FAIL")
    return passed


def check_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    faults = [
        f"--{name.replace('_', '-')} {rule}"
        for name, good, rule in (
            ("requests", arguments.requests >= 1, "must be 1 or more"),
            ("hang_frequency", 0 <= arguments.hang_frequency <= 1, "must be from 0 to 1"),
            ("test_hang_seconds", arguments.test_hang_seconds > 0, "must be over 0"),
            ("concurrency", arguments.concurrency >= 1, "must be 1 or more"),
            ("max_retries", arguments.max_retries >= 0, "must be 0 or more"),
            ("retry_delay", arguments.retry_delay >= 0, "must be 0 or more"),
        )
        if not good
    ]
    if faults:
        parser.error("; ".join(faults))


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
        check_flags(parser, arguments)
    except SystemExit as error:
        return os.EX_USAGE if error.code else os.EX_OK
    return 0 if report(asyncio.run(ask_all(arguments))) else 1


# --- the same program, tried on a mock engine by pytest ---


def test_requests_that_hang_for_a_while_are_answered(
    run: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url = start_mock_engine(run, "--tokens-per-second", "0")
    flags = ["--hang-frequency", "0.5", "--test-hang-seconds", "0.5", "--requests", "6"]
    assert main(["--url", url, *flags]) == 0
    shown = capsys.readouterr().out
    assert "answered   6 of 6" in shown
    assert "attempts   6" in shown
    assert shown.count("hung") == 3


@pytest.mark.parametrize("flags", [["--stream"], []])
def test_requests_survive_the_restart_of_a_hanging_engine(
    run: Programs, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    port = str(free_port())
    serving = ("--port", port, "--tokens-per-second", "0")
    program, url = start_mock_engine(run, *serving)

    def restart_when_all_hang() -> None:
        wait_until(lambda: requests.get(f"{url}/health", timeout=5).json()["running"] == 4)
        program.signal(signal.SIGKILL)
        program.wait()
        start_mock_engine(run, *serving)

    restarting = threading.Thread(target=restart_when_all_hang)
    restarting.start()
    hang = ["--hang-frequency", "1", "--test-hang-seconds", "600", "--requests", "4"]
    code = main(["--url", url, *hang, "--retry-delay", "0.2", "--max-retries", "100", *flags])
    restarting.join()
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "retried    4" in shown


def test_a_request_that_stays_without_answer_fails_the_check(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--requests", "1", "--max-retries", "2", "--retry-delay", "0"]
    assert main(["--url", f"http://127.0.0.1:{free_port()}", *flags]) == 1
    assert "3 attempts" in capsys.readouterr().out


def test_a_refusal_that_cannot_heal_is_not_tried_again(
    run: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url = start_mock_engine(run)
    assert main(["--url", url, "--requests", "1", "--model", "absent"]) == 1
    assert "attempts   1" in capsys.readouterr().out


def test_wrong_flags_are_all_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--hang-frequency", "2", "--concurrency", "0"]) == 64
    told = capsys.readouterr().err
    assert "--hang-frequency must be from 0 to 1; --concurrency must be 1 or more" in told


if __name__ == "__main__":
    sys.exit(main())
