"""R5: leaving frees the GPU, at once and in every phase."""

import time
from collections.abc import Sequence

import pytest

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import static
from rig.load_client import Call, chat_call
from rig.processes import wait_until
from rig.raw_client import RawClient, request_bytes
from rig.routers import SLOW, StartRouter

COUNTS = [6, pytest.param(20, marks=SLOW)]
WAITING = chat_call(script={"delay": 10})
STREAMING = chat_call(stream=True, script={"stream": {"chunks": 10_000, "interval": 0.02}})


def leave_all(clients: Sequence[RawClient]) -> float:
    """Half of them close, half of them reset; when the last one did."""
    for number, client in enumerate(clients):
        if number % 2:
            client.reset()
        else:
            client.__exit__()
    return time.monotonic()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("call", [WAITING, STREAMING], ids=["waiting", "streaming"])
def test_an_engine_sees_its_connection_closed_when_the_client_leaves(
    start: StartRouter, fakes: Farm, engine: FakeEngine, call: Call, count: int
) -> None:
    router = start(static(engine))
    clients = [RawClient(router.url) for _ in range(count)]
    for client in clients:
        client.send(request_bytes("POST", call.target, call.headers, call.body))
    wait_until(lambda: engine.in_flight == count)
    if call is STREAMING:
        assert all(client.read_some() for client in clients)
    assert router.in_flight() == count
    left = leave_all(clients)
    wait_until(lambda: engine.in_flight == 0, 5)
    records = fakes.records(engine)
    assert [record.outcome for record in records] == ["cancelled"] * count
    late = [max(0.0, (record.ended or 0) - left) for record in records]
    phase = "mid-stream" if call is STREAMING else "waiting"
    print(
        f"R5 {router.name}: {count} clients left {phase}, their engine saw it at most"
        f" {max(late) * 1e3:.0f} ms after the last one"
    )
    assert max(late) <= 1.0
    wait_until(lambda: router.in_flight() == 0)
    assert router.service(engine.name)["in_flight"] == 0
    assert router.service(engine.name)["prefill_requests"] == 0
    assert router.service(engine.name)["error_count"] == 0


@pytest.mark.parametrize("count", COUNTS)
def test_who_leaves_the_queue_never_reaches_an_engine(
    start: StartRouter, fakes: Farm, engine: FakeEngine, count: int
) -> None:
    router = start(static(engine), flags={"max-concurrency": 1})
    held, *clients = [RawClient(router.url) for _ in range(1 + count)]
    held.send(request_bytes("POST", WAITING.target, WAITING.headers, WAITING.body))
    wait_until(lambda: engine.in_flight == 1)
    for client in clients:
        client.send(request_bytes("POST", WAITING.target, WAITING.headers, WAITING.body))
    wait_until(lambda: router.get("/stats")["queued"] == count)
    left = leave_all(clients)
    wait_until(lambda: router.get("/stats")["queued"] == 0, 5, every=0.005)
    print(
        f"R5 {router.name}: {count} clients left the queue, which was empty"
        f" {(time.monotonic() - left) * 1e3:.0f} ms after the last one"
    )
    leave_all([held])
    wait_until(lambda: engine.in_flight == 0, 5)
    wait_until(lambda: router.in_flight() == 0)
    assert [record.outcome for record in fakes.records(engine)] == ["cancelled"]
