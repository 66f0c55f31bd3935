"""R11: no answer is generated twice behind the client's back."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from rig.engine_script import Json
from rig.farm import Farm
from rig.flows import closed_loop, static
from rig.load_client import chat_call
from rig.raw_client import RawClient, request_bytes
from rig.routers import SLOW, StartRouter

COUNTS = [30, pytest.param(300, marks=SLOW)]


def generations(fakes: Farm, engines: list[object]) -> int:
    return sum(
        record.generation
        for engine in engines
        for record in fakes.records(engine)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    "fault",
    [
        ({"die": {"at": "head", "how": "rst"}}, False, 502),
        ({"die": {"at": "head", "how": "fin"}}, True, 502),
        ({"delay": 5}, False, 504),
        ({"stream": {"chunks": 5}, "die": {"at": 2, "how": "rst"}}, True, 200),
    ],
    ids=["reset", "close", "time-out", "after the head"],
)
def test_a_request_that_was_sent_is_never_sent_again(
    start: StartRouter, fakes: Farm, fault: tuple[Json, bool, int], count: int
) -> None:
    script, stream, status = fault
    engines = [fakes.engine(f"e{number}") for number in range(2)]
    flags = {"response-timeout": 0.6, "first-byte-timeout": 0.6, "max-errors": 0}
    router = start(static(*engines), flags=flags)
    outcomes = closed_loop(router.url, [chat_call(stream=stream, script=script)] * count, 10)
    assert [outcome.status for outcome in outcomes] == [status] * count
    assert {outcome.kind for outcome in outcomes} == {"explained"}
    made = generations(fakes, [*engines])
    print(f"R11 {router.name}: {made} generations of {count} requests after {script}")
    assert made == count


@pytest.mark.parametrize("count", COUNTS)
def test_a_refused_connection_is_tried_once_more_and_generates_once(
    start: StartRouter, fakes: Farm, count: int
) -> None:
    good, bad = fakes.engine("good"), fakes.engine("bad", listening=False)
    router = start(static(good, bad), flags={"health-fall": 100})
    outcomes = closed_loop(router.url, [chat_call()] * count, 5)
    made = generations(fakes, [good, bad])
    print(
        f"R11 {router.name}: {made} generations of {count} requests beside an engine that refuses"
    )
    assert [outcome.status for outcome in outcomes] == [200] * count
    assert made == count


@contextlib.contextmanager
def unanswering() -> Iterator[int]:
    """A port where connecting takes for ever: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        while True:
            client = stack.enter_context(socket.socket())
            client.settimeout(0.2)
            try:
                client.connect(listener.getsockname())
            except TimeoutError:
                break
        yield listener.getsockname()[1]


@pytest.mark.parametrize("count", [6, pytest.param(40, marks=SLOW)])  # the budget allows 30
def test_a_connection_that_times_out_is_tried_once_more_and_generates_once(
    start: StartRouter, fakes: Farm, count: int
) -> None:
    good = fakes.engine("good")
    health = {"models": ["m"], "health_url": f"http://127.0.0.1:{good.port + 1}/health"}
    with unanswering() as port:
        hung = {"name": "hung", "host": "127.0.0.1", "port": port, "metadata": health}
        flags = {"proxy-connect-timeout": 0.5, "max-errors": 0}
        router = start([*static(good), hung], flags=flags)
        outcomes = closed_loop(router.url, [chat_call()] * count, 6)
    retried = [o for o in outcomes if o.head and o.head.get("x-infinilm-attempts") == "2"]
    made = generations(fakes, [good])
    print(
        f"R11 {router.name}: {made} generations of {count} requests, {len(retried)} of which could"
        " not connect at first"
    )
    assert [outcome.status for outcome in outcomes] == [200] * count
    assert len(retried) >= count // 3
    assert made == count


def test_what_was_reset_before_its_head_is_sent_again_only_when_asked_for(
    start: StartRouter, fakes: Farm
) -> None:
    engines = [fakes.engine(f"e{number}") for number in range(2)]
    flags = {"retry-on": "reset-before-headers", "max-errors": 0}
    router = start(static(*engines), flags=flags)
    call = chat_call(script={"die": {"at": "head", "how": "rst"}})
    outcomes = closed_loop(router.url, [call] * 20, 4)  # within the budget of retries
    made = generations(fakes, [*engines])
    print(f"R11 {router.name}: {made} generations of 20 requests with --retry-on")
    assert [outcome.status for outcome in outcomes] == [502] * 20
    assert made == 40


def test_the_time_of_an_attempt_ends_with_it(start: StartRouter, fakes: Farm) -> None:
    """The second attempt still connects when the first one's time would have been over."""
    reset = fakes.engine("reset", script={"delay": 1, "die": {"at": "head", "how": "rst"}})
    health = {"models": ["m"], "health_url": f"http://127.0.0.1:{reset.port + 1}/health"}
    flags = {"retry-on": "reset-before-headers", "response-timeout": 2}
    with unanswering() as port:
        hung = {"name": "hung", "host": "127.0.0.1", "port": port, "weight": 0, "metadata": health}
        router = start([*static(reset), hung], flags={**flags, "proxy-connect-timeout": 2})
        with RawClient(router.url) as client:
            client.send(request_bytes("POST", "/v1/chat/completions", (), b'{"model":"m"}'))
            answer = client.read("POST")
            assert (answer.status, answer.get("x-infinilm-error")) == (503, "connect_failed")
            client.send(request_bytes("GET", "/stats"))
            assert b'"requests":1' in client.read().body.replace(b" ", b""), "one outcome"
