"""R20: a slow reader hurts only itself."""

import asyncio
import re
import socket
import threading
import time
from typing import Self
from urllib.parse import urlsplit

import pytest

from rig.engine_script import pattern
from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import closed_loop, static
from rig.load_client import Outcome, chat_call, kinds
from rig.processes import wait_until
from rig.raw_client import RawClient, ask, request_bytes
from rig.routers import SLOW, Router, StartRouter
from rig.server import Connection, Request, Server
from rig.traffic import Traffic, percentile
from rig.wire import chunk

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
    print(
        f"R20 {router.name}: {READERS} readers that read nothing of {SIZE} MB: +"
        f"{(peak - before) / MEBIBYTE:.1f} MB"
    )
    assert peak - before <= 64 * MEBIBYTE
    wait_until(lambda: engine.in_flight == 0)
    assert {reader.read_end(5) for reader in readers} <= {"closed", "reset"}
    for reader in readers:
        reader.reset()
    assert router.service(engine.name)["error_count"] == 0


def test_a_reader_that_is_slow_but_reads_gets_everything(
    start: StartRouter, engine: FakeEngine
) -> None:
    router = start(static(engine), flags={"write-timeout": 1, "idle-timeout": 1})
    call = chat_call(script={"size": SIZE * MEBIBYTE})
    started = time.monotonic()
    with RawClient(router.url, receive_buffer=32_768) as client:
        client.pause = 0.004
        client.send(request_bytes("POST", call.target, call.headers, call.body))
        answer = client.read("POST")
    assert answer.whole
    assert answer.body == pattern(SIZE * MEBIBYTE)
    assert time.monotonic() - started > 1, "the reader was not slow enough to prove anything"


def test_a_reader_that_stops_for_longer_than_an_engine_may_gets_everything(
    start: StartRouter, engine: FakeEngine
) -> None:
    router = start(static(engine), flags={"idle-timeout": 0.3})
    call = chat_call(script={"size": SIZE * MEBIBYTE})
    with RawClient(router.url, receive_buffer=32_768) as client:
        client.send(request_bytes("POST", call.target, call.headers, call.body))
        wait_until(lambda: router.in_flight() == 1)
        time.sleep(1.2)  # the engine is held back all the while, so its silence is not its fault
        answer = client.read("POST")
    assert answer.whole
    assert answer.body == pattern(SIZE * MEBIBYTE)
    assert router.service(engine.name)["error_count"] == 0


class Fountain:
    """An engine whose streams never end, as fast as they are taken."""

    def __init__(self) -> None:
        self.streams = self.sent = 0
        self.server = Server(self._handle)

    def is_held(self) -> bool:
        """Whether it could send little since this was asked before."""
        sent, self.sent = self.sent, 0
        return sent < 50

    async def _handle(self, connection: Connection, request: Request) -> bool:
        if request.method == "GET":
            await connection.answer(200, b"{}")
            return True
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked"
        event = chunk(b"data: " + 16_000 * b"x" + b"\n\n")
        self.streams += 1
        try:
            await connection.send(f"{head}\r\n\r\n".encode())
            while True:
                await connection.send(event)
                self.sent += 1
                await asyncio.sleep(0)
        finally:
            self.streams -= 1


class SlowReaders:
    """Clients that take `rate` bytes a second, eight times a second, of streams without end."""

    def __init__(self, url: str, count: int, rate: int = 1024) -> None:
        self._url, self._count, self._size = url, count, rate // 8
        self.taken = [0] * count  # bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._read()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: min(self.taken) > 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    async def _read(self) -> None:
        await asyncio.gather(*(self._one(index) for index in range(self._count)))

    async def _one(self, index: int) -> None:
        parts, loop = urlsplit(self._url), asyncio.get_running_loop()
        call = chat_call(stream=True)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, max(4096, 2 * self._size))
            sock.setblocking(False)
            await loop.sock_connect(sock, (parts.hostname, parts.port))
            request = request_bytes("POST", call.target, call.headers, call.body)
            await loop.sock_sendall(sock, request)
            while not self._stop.is_set() and (data := await loop.sock_recv(sock, self._size)):
                self.taken[index] += len(data)
                await asyncio.sleep(0.125)


def test_a_reader_that_takes_a_little_all_the_time_is_not_taken_for_stuck(
    start: StartRouter, fakes: Farm
) -> None:
    flood, rate = Fountain(), 128 * 1024
    router = start([flood_service(flood, fakes)], flags={"write-timeout": 2})
    # What the kernel holds of an answer must be little for that. Of 64 KiB, progress shows after
    # half a second at most; of 3 MB, it would after eight.
    with SlowReaders(router.url, 4, rate) as readers:
        wait_until(lambda: min(readers.taken) > 6 * rate, 30, "about six seconds of reading")
        assert flood.streams == 4
    wait_until(lambda: router.in_flight() == flood.streams == 0)
    fakes.call(flood.server.close())


def test_a_slow_reader_does_not_keep_a_stream_beyond_its_limit(
    start: StartRouter, fakes: Farm
) -> None:
    flood = Fountain()
    router = start([flood_service(flood, fakes)], flags={"stream-timeout": 1})
    with SlowReaders(router.url, 2, 32 * 1024):
        wait_until(lambda: flood.streams == 0, 10, "the engine to be rid of both streams")
    wait_until(lambda: router.in_flight() == 0)
    assert router.service("flood")["error_count"] == 0
    fakes.call(flood.server.close())


def flood_service(flood: Fountain, fakes: Farm) -> dict[str, object]:
    port = fakes.call(flood.server.listen(0))
    return {"name": "flood", "host": "127.0.0.1", "port": port, "metadata": {"models": ["m"]}}


@pytest.mark.parametrize(
    ("count", "seconds", "room"), [(20, 2, 0.6), pytest.param(100, 60, 0.2, marks=SLOW)]
)
def test_others_are_served_as_fast_beside_slow_readers(
    start: StartRouter, fakes: Farm, count: int, seconds: float, room: float
) -> None:
    flood, other = Fountain(), fakes.engine("other", models=["n"], script={"delay": 0.02})
    router = start([flood_service(flood, fakes), *static(other)])

    def p99(of: list[Outcome]) -> float:
        assert kinds(of) == {"ok": len(of)}
        return percentile([outcome.ended for outcome in of], 0.99)

    def others() -> list[Outcome]:
        with Traffic(router.url, 20, lambda _: chat_call("n")) as traffic:
            traffic.go_on(seconds)
            return traffic.end()

    alone, before = p99(others()), router.memory()
    with SlowReaders(router.url, count):
        wait_until(flood.is_held, 20, every=0.3)  # until then it fills the kernel's buffers
        beside, growth = p99(others()), router.memory() - before
        assert flood.streams == count, "their engine waits for them"
    print(
        f"R20 {router.name}: {count} readers of 1 KiB/s: +{growth / MEBIBYTE:.1f} MB, p99 of others"
        f" {beside * 1e3:.0f} ms, {alone * 1e3:.0f} ms without them"
    )
    assert growth <= 64 * MEBIBYTE
    assert beside <= 1.2 * alone + room
    wait_until(lambda: router.in_flight() == flood.streams == 0)
    assert router.service("flood")["error_count"] == 0
    fakes.call(flood.server.close())


def test_who_asks_on_without_reading_is_ended_and_is_given_no_place(
    start: StartRouter, engine: FakeEngine
) -> None:
    router = start(static(engine), flags={"write-timeout": 0.8})
    before = router.memory()
    with RawClient(router.url, receive_buffer=4096) as client:
        client.send(request_bytes("GET", "/metrics") * 1000)
        client.send(request_bytes("POST", "/v1/chat/completions", (), b'{"model":"m"}'))
        wait_until(lambda: clients(router) == 1, 20, "it is ended: only who asks is connected")
    assert (engine.hits, router.in_flight()) == (0, 0)
    assert router.memory() - before <= 8 * MEBIBYTE


def clients(router: Router) -> int:
    """Connections of clients that are open."""
    told = ask(router.url, "GET", "/metrics").body.decode()
    found = re.search(r"client_connections (\d+)", told)
    assert found
    return int(found[1])
