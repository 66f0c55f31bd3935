"""R6: only the engine's own faults count against it."""

import itertools

import pytest

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import closed_loop, static
from rig.load_client import Outcome, chat_call, kinds
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
    assert [state["ejected"] for state in states] == [False] * 5
    assert len(fakes.records(engine)) == 4 * count
    outcomes = closed_loop(router.url, [chat_call()] * 10, 5)
    assert kinds(outcomes) == {"ok": 10}
    wait_until(lambda: router.in_flight() == 0)
    print(
        f"R6 {router.name}: {count} each of 400, 404, 429 and aborts, {count // 4} cut bodies:"
        " 0 errors counted, never ejected"
    )


@pytest.mark.parametrize("status", [429, pytest.param(503, marks=SLOW)])
def test_an_engine_that_asks_for_a_pause_gets_it_and_then_its_share_again(
    start: StartRouter, fakes: Farm, status: int
) -> None:
    engines = [fakes.engine(f"e{number}") for number in range(2)]
    router = start(static(*engines), flags={"max-errors": 3})
    fakes.apply(engines[0], script={"status": status, "headers": {"Retry-After": "1"}})
    outcomes: list[Outcome] = []

    def asked_again() -> bool:
        # One after the other: each refusal is known before the next engine is chosen.
        outcomes.extend(closed_loop(router.url, [chat_call()] * 20, 1))
        return len(fakes.records(engines[0])) >= 3

    wait_until(asked_again, 20)
    state = router.service("e0")
    refused = [outcome for outcome in outcomes if outcome.status == status]
    arrivals = [record.request.arrived for record in fakes.records(engines[0])]
    pauses = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    print(
        f"R6 {router.name}: an engine that says {status} with Retry-After 1 gets"
        f" {len(refused)} of {len(outcomes)} requests, {min(pauses):.3f} s apart at least"
    )
    assert {outcome.head and outcome.head.get("retry-after") for outcome in refused} == {"1"}
    assert len(refused) == len(arrivals)
    assert min(pauses) >= 0.99, "one when each pause is over"
    assert state["healthy"]
    assert (state["error_count"], state["ejected"]) == (0, False)
    fakes.apply(engines[0], script={})
    wait_until(lambda: not router.service("e0")["busy"])
    before = len(fakes.records(engines[0]))
    assert kinds(closed_loop(router.url, [chat_call()] * 20, 1)) == {"ok": 20}
    assert len(fakes.records(engines[0])) == before + 10


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
