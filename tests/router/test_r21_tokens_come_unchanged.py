"""R21: tokens come through at once and unchanged."""

import asyncio
import base64
import hashlib
import itertools
import random
import time
from urllib.parse import urlsplit

import pytest

from rig.engine_script import DONE, Json
from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import closed_loop, static
from rig.load_client import chat_call
from rig.raw_client import request_bytes
from rig.routers import SLOW, StartRouter
from rig.server import Connection, Request, Server
from rig.traffic import percentile
from rig.wire import chunk

LETTERS = 'aé漢🙂\u2028\\"'
MEBIBYTE = 1 << 20
STREAMS = 20
EVENTS = [100, pytest.param(1000, marks=SLOW)]


def odd_events(count: int, lot: random.Random) -> bytes:
    """Events of 1 B to 1 MiB with characters of one to four bytes, and blank lines between."""
    sizes = [1, MEBIBYTE, *(int(2 ** lot.uniform(0, 15)) for _ in range(count - 2))]
    lot.shuffle(sizes)
    events = [
        b"data: " + "".join(lot.choices(LETTERS, k=size)).encode()[:size] + b"\n\n"
        for size in sizes
    ]
    return b"".join(event + b"\n" * lot.randrange(3) for event in events) + DONE


def cut_anywhere(data: bytes, count: int, lot: random.Random) -> list[Json]:
    """The script's pieces: cuts fall inside characters, line ends and events alike."""
    cuts = [0, *sorted(lot.sample(range(1, len(data)), count - 1)), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(cuts)]
    return [{"base64": base64.b64encode(piece).decode(), "delay": 0.005} for piece in pieces]


@pytest.mark.parametrize("count", EVENTS)
def test_every_byte_of_a_stream_comes_through_however_it_is_cut(
    start: StartRouter, fakes: Farm, engine: FakeEngine, count: int
) -> None:
    router = start(static(engine))
    lot = random.Random(count)
    data = odd_events(count, lot)
    fakes.apply(engine, script={"pieces": cut_anywhere(data, count, lot)})
    outcomes = closed_loop(router.url, [chat_call(stream=True)] * 2, 2)
    wanted = hashlib.sha256(data).hexdigest()
    digests = [hashlib.sha256(outcome.data).hexdigest() for outcome in outcomes]
    assert [outcome.whole for outcome in outcomes] == [True, True]
    assert digests == [wanted, wanted]
    print(f"R21 {router.name}: {len(data)} bytes in {count} pieces, twice: SHA-256 equal")


class Clockwork:
    """An engine whose events say when they were sent."""

    def __init__(self, events: int, interval: float) -> None:
        self._events, self._interval = events, interval
        self.server = Server(self._handle)

    async def _handle(self, connection: Connection, request: Request) -> bool:
        if request.method == "GET":
            await connection.answer(200, b"{}")
            return True
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked"
        await connection.send(f"{head}\r\n\r\n".encode())
        for _ in range(self._events):
            await connection.sleep(self._interval)
            await connection.send(chunk(b"data: %r\n\n" % time.monotonic()))
        await connection.send(chunk(DONE) + b"0\r\n\r\n")
        return True


async def delays(url: str, streams: int) -> list[float]:
    """Seconds from the engine's writing to the client's reading, of every event of all streams."""
    parts = urlsplit(url)
    call = chat_call(stream=True)

    async def one() -> list[float]:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(request_bytes("POST", call.target, call.headers, call.body))
        found = []
        while (line := await reader.readline()).strip() != b"data: [DONE]":
            assert line, "the stream ended early"
            if line.startswith(b"data: "):
                found.append(time.monotonic() - float(line[6:]))
        writer.close()
        return found

    return [
        delay for found in await asyncio.gather(*(one() for _ in range(streams))) for delay in found
    ]


# A pause of the machine delays what is on the way in all streams: of few events, one in a hundred.
@pytest.mark.parametrize(("events", "room"), [(50, 1.0), pytest.param(1000, 0.25, marks=SLOW)])
def test_tokens_are_passed_on_at_once(
    start: StartRouter, fakes: Farm, events: int, room: float
) -> None:
    engine = Clockwork(events, 0.01)
    port = fakes.call(engine.server.listen(0))
    router = start(
        [{"name": "e0", "host": "127.0.0.1", "port": port, "metadata": {"models": ["m"]}}]
    )
    direct = asyncio.run(delays(f"http://127.0.0.1:{port}", STREAMS))
    through = asyncio.run(delays(router.url, STREAMS))
    fakes.call(engine.server.close())
    shown = [f"{percentile(seen, p) * 1e3:.1f}" for seen in (direct, through) for p in (0.5, 0.99)]
    usual, added = (percentile(through, p) - percentile(direct, p) for p in (0.5, 0.99))
    held = [sum(delay > 0.02 for delay in seen) for seen in (direct, through)]
    print(
        f"R21 {router.name}: {STREAMS} streams of 100/s, delay p50/p99 {'/'.join(shown[:2])} ms"
        f" direct, {'/'.join(shown[2:])} ms through the router: {added * 1e3:+.1f} ms at p99;"
        f" {held[0]} and {held[1]} of {len(through)} came more than 20 ms after they were written"
    )
    assert len(through) == STREAMS * events
    assert usual <= 0.1
    assert added <= room
