"""R18: overload is refused fast and fairly."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Self

import pytest

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import closed_loop, static
from rig.load_client import Call, LoadClient, Outcome, chat_call, kinds
from rig.processes import wait_until
from rig.raw_client import RawClient, request_bytes
from rig.routers import SLOW, Router, StartRouter
from rig.traffic import Traffic, percentile

MEBIBYTE = 1 << 20


class Burst(NamedTuple):
    """Requests at once, the limit of each of two engines, the queue, the longest wait, the time of
    an answer. What finds no room is refused, and what has no place when the wait is over, too."""

    count: int
    limit: int
    room: int
    wait: float
    takes: float
    slack: float
    """Seconds that an end may come after its time; a busy machine needs some."""


BURSTS = [
    Burst(40, 2, 14, 1.5, 0.6, 1.0),
    pytest.param(Burst(400, 8, 64, 5.0, 2.0, 0.3), marks=SLOW),
]


class Peak:
    """The most memory that a router has used while the block ran."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.before = self.bytes = router.memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, self._router.memory())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return self.bytes - self.before


def retry_after(outcome: Outcome) -> int:
    assert outcome.head
    return int(outcome.head.get("retry-after") or 0)


def refusals(router: Router) -> list[float]:
    """Milliseconds that each took in the router, from the whole request on."""
    lines = re.findall(r"request id=.* ms=(\d+) .*error=overloaded", router.program.output)
    return [float(line) for line in lines]


def code(outcome: Outcome) -> str:
    return str(json.loads(outcome.data)["error"]["code"])


@pytest.mark.parametrize("burst", BURSTS, ids=lambda burst: f"{burst.count} at once")
def test_a_burst_passes_no_limit_and_who_has_to_go_is_told_at_once(
    start: StartRouter, fakes: Farm, burst: Burst
) -> None:
    count, limit, room, wait, takes, slack = burst
    engines = [fakes.engine(f"e{number}", script={"delay": takes}) for number in range(2)]
    flags = {"max-concurrency": limit, "queue-size": room, "queue-timeout": wait}
    router = start(static(*engines), flags=flags)
    alone = max(o.ended for o in closed_loop(router.url, [chat_call()] * limit, limit))
    with Peak(router) as peak:
        outcomes = closed_loop(router.url, [chat_call()] * count, count)
    by_status = {status: [o for o in outcomes if o.status == status] for status in (200, 429, 503)}
    served, full, late = by_status.values()
    wait_until(lambda: len(refusals(router)) == len(full), what="a line for each refusal")
    print(
        f"R18 {router.name}: of {count} at once {len(served)} served,"
        f" p95 {percentile([o.ended for o in served], 0.95):.2f} s ({alone:.2f} s alone);"
        f" {len(full)} refused after p99 {percentile([o.ended for o in full], 0.99) * 1e3:.0f} ms"
        f" ({percentile(refusals(router), 0.99):.0f} ms in the router),"
        f" {len(late)} after {min(o.ended for o in late):.2f} to {max(o.ended for o in late):.2f} s"
        f" of waiting; at most {max(e.max_in_flight for e in engines)} at an engine;"
        f" +{peak.growth / MEBIBYTE:.0f} MB"
    )
    assert sum(map(len, by_status.values())) == count
    assert max(engine.max_in_flight for engine in engines) == limit
    assert len(served) >= 2 * limit + 2 * limit * int(wait / takes - 1)
    assert len(full) == count - 2 * limit - room
    assert {code(o) for o in full} == {"overloaded"}
    assert {code(o) for o in late} == {"queue_timeout"}
    assert all(1 <= retry_after(o) <= 60 for o in full + late)
    assert percentile([o.ended for o in served], 0.95) <= wait + 1.2 * alone + slack
    assert percentile([o.ended for o in full], 0.99) <= wait / 2, "they have not waited"
    assert all(wait - 0.05 <= o.ended <= wait + slack for o in late)
    assert peak.growth <= 150 * MEBIBYTE
    wait_until(lambda: router.get("/stats")["queued"] == router.in_flight() == 0)
    after = closed_loop(router.url, [chat_call()] * 2 * limit, 2 * limit)
    assert kinds(after) == {"ok": 2 * limit}
    assert percentile([o.ended for o in after], 0.95) <= 1.2 * alone + slack


def send(router: Router, call: Call) -> RawClient:
    client = RawClient(router.url)
    client.send(request_bytes("POST", call.target, call.headers, call.body))
    return client


def queued(router: Router, count: int) -> None:
    wait_until(lambda: router.get("/stats")["queued"] == count)


def numbers(fakes: Farm, engines: Sequence[FakeEngine]) -> list[str]:
    """What was asked for, in the order in which it came to the engines."""
    records = [record for engine in engines for record in fakes.records(engine)]
    records.sort(key=lambda record: record.request.arrived)
    return [json.loads(record.request.body)["user"] for record in records]


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=SLOW)])
def test_first_come_is_first_served(start: StartRouter, fakes: Farm, count: int) -> None:
    engines = [fakes.engine(f"e{number}") for number in range(2)]
    router = start(static(*engines), flags={"max-concurrency": 1})
    clients = [send(router, chat_call(user=f"held {n}", script={"delay": 60})) for n in range(2)]
    wait_until(lambda: router.in_flight() == 2)
    for number in range(count):
        clients.append(send(router, chat_call(user=str(number), script={"delay": 0.002})))
        queued(router, number + 1)
    clients[0].reset()  # one place becomes free, and then, one after the other, is handed on
    answers = [client.read("POST") for client in clients[2:]]
    clients[1].reset()
    assert [answer.status for answer in answers] == [200] * count
    assert numbers(fakes, engines)[2:] == [str(number) for number in range(count)]
    assert max(engine.max_in_flight for engine in engines) == 1
    for client in clients[2:]:
        client.reset()


@pytest.mark.parametrize(("seconds", "room"), [(1.5, 1.0), pytest.param(20, 0.2, marks=SLOW)])
def test_one_models_burst_does_not_hold_up_another(
    start: StartRouter, fakes: Farm, seconds: float, room: float
) -> None:
    """Nor does it where both are served by one engine more, which whoever waits longest gets."""
    busy, other = fakes.engine("e0", models=["m"]), fakes.engine("e1", models=["n"])
    flags = {"max-concurrency": 4, "queue-size": 64, "queue-timeout": 2}
    router = start(static(busy, other), flags=flags)

    def ask_other(_: int) -> Call:
        return chat_call("n", script={"delay": 0.05})

    def times(of: list[Outcome]) -> list[float]:
        assert kinds(of) == {"ok": len(of)}
        return [outcome.ended for outcome in of]

    with Traffic(router.url, 20, ask_other) as traffic:
        traffic.go_on(seconds)
        alone = times(traffic.end())
    with Traffic(router.url, 20, ask_other) as traffic:
        outcomes = asyncio.run(flood(router.url, seconds))
        beside = times(traffic.end())
    refused = sum(outcome.status == 429 for outcome in outcomes)
    shown = [f"{percentile(found, 0.95) * 1e3:.0f}" for found in (alone, beside)]
    print(
        f"R18 {router.name}: p95 of a model {shown[0]} ms alone, {shown[1]} ms beside a burst of"
        f" another ({len(outcomes)} calls, {refused} refused)"
    )
    assert refused > 0
    assert other.max_in_flight <= 4
    assert percentile(beside, 0.95) <= 1.2 * percentile(alone, 0.95) + room


async def flood(url: str, seconds: float) -> list[Outcome]:
    """80 clients at a time ask for "m"."""
    client, call = LoadClient(url), chat_call(script={"delay": 0.2})
    until, done = time.monotonic() + seconds, []

    async def one() -> None:
        while time.monotonic() < until:
            done.append(await client.send(call, time.monotonic()))
            await asyncio.sleep(0.05)  # who was refused asks again so soon

    await asyncio.gather(*(one() for _ in range(80)))
    await client.close()
    return done


def test_a_second_attempt_waits_too_and_tries_no_engine_twice(
    start: StartRouter, fakes: Farm
) -> None:
    good, bad = fakes.engine("good"), fakes.engine("bad", listening=False)
    flags = {"max-concurrency": 1, "health-fall": 100, "max-errors": 0}
    router = start(static(bad, good), flags=flags)
    held = send(router, chat_call(script={"delay": 60}))
    wait_until(lambda: good.in_flight == 1)
    second = send(router, chat_call())
    queued(router, 1)
    held.reset()
    answer = second.read("POST")
    second.reset()
    assert (answer.status, answer.get("x-infinilm-service")) == (200, "good")
    assert answer.get("x-infinilm-attempts") == "2"
    wait_until(lambda: router.in_flight() == 0)
