"""R20: a slow reader hurts only itself."""

import time

from rig.engine_script import pattern
from rig.fake_engine import FakeEngine
from rig.flows import closed_loop, static
from rig.load_client import chat_call, kinds
from rig.processes import wait_until
from rig.raw_client import RawClient, request_bytes
from rig.routers import StartRouter

READERS, SIZE, MEBIBYTE = 20, 16, 1 << 20


def test_readers_that_read_nothing_cost_little_memory_and_are_ended(
    start: StartRouter, engine: FakeEngine
) -> None:
    router = start(static(engine), flags={"write-timeout": 0.8})
    assert kinds(closed_loop(router.url, [chat_call()] * 20, 5)) == {"ok": 20}
    before = router.memory()
    call = chat_call(script={"size": SIZE * MEBIBYTE})
    readers = [RawClient(router.url) for _ in range(READERS)]
    for reader in readers:
        reader.send(request_bytes("POST", call.target, call.headers, call.body))
    wait_until(lambda: router.in_flight() == READERS)
    assert kinds(closed_loop(router.url, [chat_call()] * 50, 5)) == {"ok": 50}
    peak = before
    while router.in_flight() > 0:
        peak = max(peak, router.memory())
    assert peak - before <= 64 * MEBIBYTE
    wait_until(lambda: engine.in_flight == 0)
    assert {reader.read_end(5) for reader in readers} <= {"closed", "reset"}
    for reader in readers:
        reader.reset()
    assert router.service(engine.name)["error_count"] == 0


def test_a_reader_that_is_slow_but_reads_gets_everything(
    start: StartRouter, engine: FakeEngine
) -> None:
    router = start(static(engine), flags={"write-timeout": 0.5, "idle-timeout": 0.5})
    call = chat_call(script={"size": SIZE * MEBIBYTE})
    started = time.monotonic()
    with RawClient(router.url, receive_buffer=32_768) as client:
        client.pause = 0.004
        client.send(request_bytes("POST", call.target, call.headers, call.body))
        answer = client.read("POST")
    assert answer.whole
    assert answer.body == pattern(SIZE * MEBIBYTE)
    assert time.monotonic() - started > 1, "the reader was not slow enough to prove anything"
