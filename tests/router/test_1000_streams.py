"""Many streams at once come through byte for byte and leave nothing behind."""

import hashlib

import pytest

from rig.engine_process import engine_processes
from rig.engine_script import pattern, stream_pieces
from rig.fake_engine import FakeEngine
from rig.flows import closed_loop, static
from rig.load_client import Call, chat_call, kinds
from rig.processes import Programs, wait_until
from rig.routers import SLOW, StartRouter

CHUNKS, AT_A_TIME = 128, 50


@pytest.mark.parametrize("streams", [100, pytest.param(1000, marks=SLOW)])
def test_1000_streams_of_128_chunks_50_at_a_time(
    start: StartRouter, run: Programs, streams: int
) -> None:
    engines = engine_processes(run, 2)
    services = [engine.static(metadata={"models": ["m"]}) for engine in engines]
    router = start(services, flags={"pool-idle-timeout": 0.3})
    options = {"chunks": CHUNKS, "interval": 0.002}
    warm = closed_loop(router.url, [chat_call(stream=True)] * AT_A_TIME, AT_A_TIME)
    assert kinds(warm) == {"ok": AT_A_TIME}
    wait_until(lambda: all(engine.state()["connections"] == 0 for engine in engines))
    before = router.descriptors()
    calls = [chat_call(stream=True, script={"stream": options})] * streams
    outcomes = closed_loop(router.url, calls, AT_A_TIME)
    assert kinds(outcomes) == {"ok": streams}
    expected = hashlib.sha256(b"".join(p.data for p in stream_pieces(options, "m"))).digest()
    assert {hashlib.sha256(outcome.data).digest() for outcome in outcomes} == {expected}
    wait_until(lambda: router.in_flight() == 0)
    wait_until(lambda: sum(engine.state()["in_flight"] for engine in engines) == 0)
    assert sum(engine.state()["hits"] for engine in engines) == streams + AT_A_TIME
    wait_until(lambda: router.descriptors() <= before, 15, f"descriptors back to {before}")
    for engine in engines:
        engine.close()


def test_events_from_one_byte_to_one_mebibyte_come_through_unchanged(
    start: StartRouter, engine: FakeEngine
) -> None:
    router = start(static(engine))
    sizes = [1, 2, 3, 100, 4095, 4096, 65_535, 65_536, 65_537, 262_144, 1 << 20]
    pieces = [{"size": size, "delay": 0.002 * (size < 100)} for size in sizes] * 3
    script = {"pieces": pieces, "headers": [["Content-Type", "application/x-ndjson"]]}
    calls: list[Call] = [chat_call(script=script)] * 10
    outcomes = closed_loop(router.url, calls, 5)
    expected = b"".join(pattern(size) for size in sizes) * 3
    assert [outcome.whole for outcome in outcomes] == [True] * 10
    assert all(outcome.data == expected for outcome in outcomes)
