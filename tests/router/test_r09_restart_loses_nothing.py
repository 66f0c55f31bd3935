"""R9: restarting a router loses nothing."""

import asyncio
import signal
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import static
from rig.load_client import LoadClient, Outcome, chat_call
from rig.processes import wait_until
from rig.raw_client import RawClient, request_bytes
from rig.routers import SLOW, Router, StartRouter
from rig.traffic import faults


@dataclass
class Switch:
    """The trivial switch that a client in front of two routers has: it asks /health."""

    routers: list[Router]
    ready: set[str] = field(default_factory=set)
    all_ready: asyncio.Event = field(default_factory=asyncio.Event)
    last_loss: float = 0.0  # when a router said that it is ready no more
    turn: int = 0

    async def watch(self) -> None:
        """Keep `ready` up to date until cancelled."""
        while True:
            for router in self.routers:
                if await asyncio.to_thread(is_ready, router):
                    self.ready.add(router.url)
                elif router.url in self.ready:
                    self.ready.remove(router.url)
                    self.last_loss = time.monotonic()
            if len(self.ready) == len(self.routers):
                self.all_ready.set()
            await asyncio.sleep(0.05)

    def pick(self) -> str:
        """The next ready router in turn."""
        ready = sorted(self.ready)
        self.turn += 1
        return ready[self.turn % len(ready)]


def is_ready(router: Router) -> bool:
    try:
        return bool(router.get("/health")["status"] == "healthy")
    except OSError:
        return False


async def short_calls(switch: Switch, rate: float, seconds: float) -> list[Outcome]:
    """Short calls at fixed times, each to a router that said it was ready."""
    clients = {router.url: LoadClient(router.url) for router in switch.routers}
    started, tasks = time.monotonic(), []
    for index in range(int(rate * seconds)):
        due = started + index / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(clients[switch.pick()].send(chat_call(), due)))
    outcomes = list(await asyncio.gather(*tasks))
    for client in clients.values():
        await client.close()
    return outcomes


class Seen(NamedTuple):
    """Outcomes; seconds from the signal to "not ready" and until the port is closed, and from the
    last stream to the exit."""

    streams: list[Outcome]
    calls: list[Outcome]
    unready: float
    closed: float
    exited: float


async def watch_port(router: Router) -> float:
    """Seconds from now until the port is closed."""
    began = time.monotonic()
    while is_open(router):  # noqa: ASYNC110 - seen from outside
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def is_open(router: Router) -> bool:
    try:
        with RawClient(router.url):
            return True
    except OSError:
        return False


async def traffic_while_one_stops(switch: Switch, streams: int, stream_seconds: float) -> Seen:
    """Streams on both routers and short calls; one router is told to stop in the middle."""
    stopping = switch.routers[0]
    interval = stream_seconds / 50
    call = chat_call(stream=True, script={"stream": {"chunks": 50, "interval": interval}})
    clients = [LoadClient(router.url, stream_seconds + 30) for router in switch.routers]
    watcher = asyncio.create_task(switch.watch())
    await switch.all_ready.wait()
    now = time.monotonic()
    running = [asyncio.create_task(clients[n % 2].send(call, now)) for n in range(streams)]
    short = asyncio.create_task(short_calls(switch, 20, stream_seconds * 1.2))
    await asyncio.sleep(stream_seconds / 4)  # it is told in the middle of them
    told = time.monotonic()
    stopping.program.signal(signal.SIGTERM)
    closed = await watch_port(stopping)
    done = list(await asyncio.gather(*running))
    last = max(outcome.due + outcome.ended for outcome in done[::2])
    await asyncio.to_thread(stopping.program.wait, 20)
    exited = time.monotonic() - last
    calls = await short
    watcher.cancel()
    for client in clients:
        await client.close()
    return Seen(done, calls, switch.last_loss - told, closed, exited)


@pytest.mark.parametrize(
    ("streams", "seconds", "room"), [(6, 3.2, 0.3), pytest.param(30, 20.0, 0.0, marks=SLOW)]
)
def test_a_router_that_is_stopped_loses_no_stream_and_no_call(
    start: StartRouter, engine: FakeEngine, streams: int, seconds: float, room: float
) -> None:
    delay = seconds / 4
    flags = {"drain-delay": delay, "drain-timeout": seconds * 2}
    switch = Switch([start(static(engine), flags=flags) for _ in range(2)])
    seen = asyncio.run(traffic_while_one_stops(switch, streams, seconds))
    lost = faults(seen.streams + seen.calls)
    print(
        f"R9 {switch.routers[0].name}: {len(lost)} of {streams} streams and {len(seen.calls)} calls"
        f" lost, not ready {seen.unready:.2f} s after SIGTERM, port closed after {seen.closed:.2f}"
        f" s, gone {seen.exited:.2f} s after the last stream"
    )
    assert lost == []
    assert switch.routers[0].program.wait() == 0
    assert 0 <= seen.unready <= 0.5 + room
    assert seen.closed >= delay - 0.01, "timers have milliseconds"
    assert seen.exited <= 1 + room
    news = switch.routers[0].program.output.count("still draining in_flight=")
    assert news >= seconds // 5 - 2, "a long drain is seen in the log"
    wait_until(lambda: switch.routers[1].in_flight() == 0)


@pytest.mark.parametrize("signals", [1, 2], ids=["the grace is over", "a second signal"])
def test_a_stream_that_outlives_the_router_is_ended_by_an_error_event(
    start: StartRouter, engine: FakeEngine, signals: int
) -> None:
    grace = 1.0 if signals == 1 else 60.0
    router = start(static(engine), flags={"drain-delay": 0.2, "drain-timeout": grace})
    call = chat_call(stream=True, script={"stream": {"chunks": 10_000, "interval": 0.02}})
    with RawClient(router.url) as client:
        client.send(request_bytes(call.method, call.target, call.headers, call.body))
        assert client.read_some()
        told = time.monotonic()
        for _ in range(signals):
            router.program.signal(signal.SIGTERM)
            router.program.wait_for_line("draining in_flight=1")
        body = b""
        while more := client.read_some():
            body += more
    assert router.program.wait() == 0
    took = time.monotonic() - told
    last = body.rstrip().split(b"\n\n")[-1]
    assert b'"code":"draining"' in last
    assert b"[DONE]" not in body
    assert not body.endswith(b"0\r\n\r\n"), "the end of the body must not look orderly"
    print(f"R9 {router.name}: {signals} signal, grace {grace:g} s: gone after {took:.2f} s")
    assert took <= (0.2 + grace if signals == 1 else 0) + 2


def test_sighup_changes_nothing_for_a_router_that_drains(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine))
    script = {"pieces": ["data: 1\n\n", {"text": "data: [DONE]\n\n", "delay": "held"}]}
    call = chat_call(stream=True, script=script)
    with RawClient(router.url) as client:
        client.send(request_bytes("POST", call.target, call.headers, call.body))
        wait_until(lambda: engine.in_flight == 1)
        router.program.signal(signal.SIGTERM)
        router.program.wait_for_line("draining")
        router.program.signal(signal.SIGHUP)
        fakes.apply(engine, release=1)
        answer = client.read("POST")
        assert (answer.whole, answer.body) == (True, b"data: 1\n\ndata: [DONE]\n\n")
    assert router.program.wait() == 0


def test_a_second_signal_says_nothing_on_connections_that_rest(
    start: StartRouter, engine: FakeEngine
) -> None:
    router = start(static(engine), flags={"drain-delay": 60})
    with RawClient(router.url) as client:
        client.send(request_bytes("GET", "/health"))
        assert client.read().status == 200
        router.program.signal(signal.SIGTERM)
        router.program.wait_for_line("draining")
        router.program.signal(signal.SIGTERM)
        assert client.read_some() == b""
