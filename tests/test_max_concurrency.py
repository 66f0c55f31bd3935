"""Check that an engine works on no more requests at once than it was told to.

Run it against a live endpoint (a router or an engine), or let pytest run it on a mock engine:

    python tests/test_max_concurrency.py --url http://localhost:8000 --requests 20 \
        --expected-max-concurrency 5 --model my-model --max-tokens 100 --stream

Exit code 0: every request was answered and exactly the expected number ran side by side at the
busiest moment; 1: not so; 64: wrong flags.
"""

import argparse
import asyncio
import itertools
import os
import sys
from collections.abc import Sequence

import pytest

from rig.chat_probe import Asked, ask, chat_url, pick_model, session_with_timeout
from rig.mock import start_mock_engine
from rig.processes import Programs

# Periods are taken this much shorter than they were, so that two requests which follow each
# other in one slot do not seem to overlap because of some milliseconds on their way to us.
_MARGIN = 0.25


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Check the concurrency limit of an engine.")
    add = parser.add_argument
    add("--url", default="http://localhost:8000", help="base address (default %(default)s)")
    add("--requests", type=int, default=20, help="how many to send at once (default 20)")
    add("--expected-max-concurrency", type=int, required=True, help="the engine's limit")
    add("--model", help="model id (default: the first one that the endpoint lists)")
    add("--max-tokens", type=int, default=50, help="length of each answer (default 50)")
    add("--stream", action="store_true", help="ask for streams; measures more exactly")
    add("--timeout", type=float, default=300.0, help="longest wait in seconds (default 300)")
    return parser


async def ask_all(arguments: argparse.Namespace) -> list[Asked]:
    """Send all requests at the same time."""
    url = chat_url(arguments.url)
    async with session_with_timeout(arguments.timeout) as session:
        model = await pick_model(session, arguments.url, arguments.model)
        print(f"{arguments.requests} requests to {url}, model {model}, stream {arguments.stream}")
        bodies = [
            {
                "model": model,
                "messages": [{"role": "user", "content": f"Test request {number}. Be brief."}],
                "max_tokens": arguments.max_tokens,
                "stream": arguments.stream,
            }
            for number in range(arguments.requests)
        ]
        return await asyncio.gather(*(ask(session, url, body) for body in bodies))


def busy_periods(answers: Sequence[Asked], *, stream: bool) -> list[tuple[float, float]]:
    """When the engine worked on each request, seen from here.

    A stream shows it: from its first text to its end. An answer in one piece does not; the
    fastest one did not wait, so each is taken to have worked as long as that before its end.
    """
    if stream:
        return [(one.first, one.end - _MARGIN * (one.end - one.first)) for one in answers]
    work = min((one.seconds for one in answers), default=0.0) * (1 - _MARGIN)
    return [(one.end - work, one.end) for one in answers]


def most_at_once(periods: Sequence[tuple[float, float]]) -> int:
    """The largest number of periods that overlap."""
    # At one and the same moment ends sort before beginnings: touching is not overlapping.
    edges = sorted(edge for begin, end in periods for edge in ((begin, 1), (end, -1)))
    return max(itertools.accumulate(step for _, step in edges), default=0)


def report(answers: Sequence[Asked], arguments: argparse.Namespace) -> bool:
    """Print what was seen; true if it is what was expected."""
    good = [answer for answer in answers if answer.ok]
    for number, answer in enumerate(answers):
        state = "ok" if answer.ok else f"FAILED status {answer.status}: {answer.fault}"
        print(f"  request {number:>3}  {answer.seconds:7.2f} s  {state}")
    seen = most_at_once(busy_periods(good, stream=arguments.stream))
    expected = min(arguments.expected_max_concurrency, arguments.requests)
    print(f"answered       {len(good)} of {len(answers)}")
    print(f"most at once   {seen}, expected {expected}")
    passed = len(good) == len(answers) and seen == expected
    print("PASS" if passed else "FAIL")
    if seen < expected:
        print("hint: longer answers (--max-tokens) overlap more; or the limit is lower than that")
    return passed


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
        for name in ("requests", "expected_max_concurrency", "max_tokens"):
            if getattr(arguments, name) < 1:
                parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    except SystemExit as error:
        return os.EX_USAGE if error.code else os.EX_OK
    return 0 if report(asyncio.run(ask_all(arguments)), arguments) else 1


# --- the same program, tried on a mock engine by pytest ---


@pytest.mark.parametrize("flags", [["--stream"], []])
def test_the_limit_of_an_engine_is_observed(
    run: Programs, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    # Answers of 1.5 s: a quarter of that is what a busy machine may add to one.
    _, url = start_mock_engine(run, "--max-concurrency", "3", "--tokens-per-second", "40")
    common = ["--url", url, "--requests", "9", "--max-tokens", "60", *flags]
    assert main([*common, "--expected-max-concurrency", "3"]) == 0, capsys.readouterr().out
    assert main([*common, "--expected-max-concurrency", "5"]) == 1
    assert "most at once   3, expected 5" in capsys.readouterr().out


def test_a_missing_limit_is_found(run: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    _, url = start_mock_engine(run, "--tokens-per-second", "150")
    flags = ["--url", url, "--requests", "6", "--max-tokens", "60", "--stream"]
    assert main([*flags, "--expected-max-concurrency", "2"]) == 1
    assert "most at once   6, expected 2" in capsys.readouterr().out


def test_failed_requests_fail_the_check(run: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    _, url = start_mock_engine(run)
    flags = ["--url", url, "--requests", "2", "--model", "absent"]
    assert main([*flags, "--expected-max-concurrency", "2"]) == 1
    assert "FAILED status 404: The model 'absent' does not exist." in capsys.readouterr().out


def test_wrong_flags_are_a_usage_error() -> None:
    assert main([]) == 64
    assert main(["--expected-max-concurrency", "0"]) == 64


if __name__ == "__main__":
    sys.exit(main())
