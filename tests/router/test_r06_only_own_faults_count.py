"""R6: only the engine's own faults count against it."""

import pytest

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import closed_loop, static
from rig.load_client import chat_call, kinds
from rig.processes import wait_until
from rig.raw_client import RawClient, request_bytes
from rig.routers import SLOW, StartRouter


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=SLOW)])
def test_client_faults_never_take_an_engine_out(
    start: StartRouter, fakes: Farm, engine: FakeEngine, count: int
) -> None:
    router = start(static(engine), flags={"max-errors": 3})
    states = []
    for status in (400, 404, 429):
        outcomes = closed_loop(router.url, [chat_call(script={"status": status})] * count, 5)
        assert {outcome.status for outcome in outcomes} == {status}
        states.append(router.service(engine.name))
    abort(router.url, count)
    wait_until(lambda: engine.in_flight == 0)
    states.append(router.service(engine.name))
    cut_bodies(router.url, count // 4)
    states.append(router.service(engine.name))
    assert [state["healthy"] for state in states] == [True] * 5
    assert [state["error_count"] for state in states] == [0] * 5
    assert len(fakes.records(engine)) == 4 * count
    outcomes = closed_loop(router.url, [chat_call()] * 10, 5)
    assert kinds(outcomes) == {"ok": 10}
    wait_until(lambda: router.in_flight() == 0)


def abort(url: str, count: int) -> None:
    """`count` clients that leave in the middle of their stream."""
    call = chat_call(stream=True, script={"stream": {"chunks": 1000, "interval": 0.01}})
    for _ in range(count):
        with RawClient(url) as client:
            client.send(request_bytes("POST", call.target, call.headers, call.body))
            assert client.read_some()


def cut_bodies(url: str, count: int) -> None:
    """`count` clients that leave in the middle of their own body."""
    for _ in range(count):
        with RawClient(url) as client:
            client.send(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{"
            )
