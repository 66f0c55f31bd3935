"""R19: slow engines get less, sessions stay put."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import xxhash

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import closed_loop, static
from rig.load_client import Call, Outcome, chat_call, kinds
from rig.processes import wait_until
from rig.routers import SLOW, Router, StartRouter
from rig.traffic import Traffic, percentile, served_by


@pytest.mark.parametrize(("seconds", "part"), [(8, 0.9), pytest.param(60, 0.95, marks=SLOW)])
def test_an_engine_ten_times_slower_gets_little(
    start: StartRouter, fakes: Farm, seconds: float, part: float
) -> None:
    # Pauses of a busy machine make all engines look slow for a while. Then in-flight counts decide,
    # by which the slow one gets 4.8 % and now and then the 5 % that make the 95th percentile its
    # own: hence another percentile in the everyday lane, and times that are long beside a pause.
    engines = [fakes.engine(f"e{n}", script={"delay": 0.2}) for n in range(2)]
    slow = fakes.engine("slow", script={"delay": 2})
    router = start(static(*engines, slow), flags={"policy": "power_of_two"})
    with Traffic(router.url, 50, lambda _: chat_call()) as traffic:
        traffic.go_on(seconds)
        outcomes = traffic.end()
    assert kinds(outcomes) == {"ok": len(outcomes)}
    served = Counter(served_by(outcome) for outcome in outcomes)
    of_all = percentile([o.ended for o in outcomes], part)
    of_fast = percentile([o.ended for o in outcomes if served_by(o) != "slow"], part)
    share = served["slow"] / len(outcomes)
    print(
        f"R19 {router.name}: the slow one of three gets {share:.1%}, p{100 * part:.0f}"
        f" {of_all * 1e3:.0f} ms, {of_fast * 1e3:.0f} ms without it"
    )
    assert share <= 0.15
    assert of_all <= 2 * of_fast


def owner(key: str, names: Sequence[str]) -> str:
    """Whom a key belongs to: the highest xxh3_64 of the key, seeded with that of the name."""
    engine_ids = {name: xxhash.xxh3_64_intdigest(name.encode()) for name in names}
    return max(names, key=lambda name: xxhash.xxh3_64_intdigest(key.encode(), engine_ids[name]))


def with_key(key: str) -> Call:
    call = chat_call()
    return Call(call.target, call.body, (*call.headers, ("x-infinilm-session", key)))


def homes(router: Router, keys: Sequence[str]) -> dict[str, str | None]:
    """Key -> the engine that served it. One at a time: bounded load moves keys of busy engines."""
    outcomes = closed_loop(router.url, [with_key(key) for key in keys], 1)
    assert kinds(outcomes) == {"ok": len(keys)}
    return {key: served_by(outcome) for key, outcome in zip(keys, outcomes, strict=True)}


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=SLOW)])
def test_sessions_stay_when_engines_leave_return_and_the_router_restarts(
    start: StartRouter, fakes: Farm, count: int
) -> None:
    engines = [fakes.engine(f"engine-{n}") for n in range(5)]
    names = [engine.name for engine in engines]
    flags = {"policy": "consistent_hash", "slow-start": 10}
    router = start(static(*engines), flags=flags)
    keys = [f"session-{number}" for number in range(count)]
    before = homes(router, keys)
    assert before == {key: owner(key, names) for key in keys}, "as in any router of either kind"
    fakes.apply(engines[2], health=503)
    router.wait_healthy("4/5")
    without = homes(router, keys)
    fakes.apply(engines[2], health=200)
    router.wait_healthy("5/5")
    returned = homes(router, keys)
    router.program.stop()
    restarted = start(static(*engines), flags=flags)
    again = homes(restarted, keys)
    moved = [key for key in keys if without[key] != before[key]]
    print(f"R19 {router.name}: {len(moved)} of {count} sessions move when one of five leaves")
    assert {before[key] for key in moved} == {"engine-2"}
    assert len(moved) <= 0.25 * count
    assert returned == before
    assert again == before


def test_a_hot_session_overloads_no_engine(start: StartRouter, fakes: Farm) -> None:
    engines = [fakes.engine(f"e{n}", script={"delay": 0.03}) for n in range(4)]
    router = start(static(*engines), flags={"policy": "consistent_hash"})
    calls = [with_key("hot" if number % 2 else f"cold-{number}") for number in range(400)]
    outcomes = closed_loop(router.url, calls, 40)
    assert kinds(outcomes) == {"ok": 400}
    most = max(engine.max_in_flight for engine in engines)
    hot = [served_by(o) for o in outcomes if ("x-infinilm-session", "hot") in o.call.headers]
    home, share = Counter(hot).most_common(1)[0]
    print(
        f"R19 {router.name}: one key of half the load: at most {most} requests at an engine, 10 are"
        f" the mean; {share} of 200 at its own engine"
    )
    assert home == owner("hot", [engine.name for engine in engines])
    assert most <= 1.5 * 10
    assert share >= 60, "a key in twice as many requests as fit is at home all the same"


def seen(router: Router, name: str, **wanted: Any) -> None:
    wait_until(lambda: wanted.items() <= router.service(name).items(), 30, f"{name}: {wanted}")


def share_of_first(fakes: Farm, engines: Sequence[FakeEngine], begin: float, end: float) -> float:
    """The first engine's calls between two times, as a part of an even share."""
    counts = [
        sum(begin <= record.request.arrived < end for record in fakes.records(engine))
        for engine in engines
    ]
    return len(engines) * counts[0] / max(1, sum(counts))


POLICIES = ["round_robin", "least_loaded", "power_of_two", "random"]
RAMPS = [
    ("round_robin", 1.5),
    ("power_of_two", 1.5),
    *(pytest.param(policy, 10, marks=SLOW) for policy in POLICIES),
]


@pytest.mark.parametrize(("policy", "span"), RAMPS)
def test_an_engine_that_recovers_gets_at_most_half_of_its_share_at_first(
    start: StartRouter, fakes: Farm, policy: str, span: float
) -> None:
    # Long beside a pause of a loaded machine: beside 10 ms it makes an engine look 50 x slower, and
    # by power_of_two such an engine gets next to nothing until that fades (in 10 s to a third).
    engines = [fakes.engine(f"e{n}", script={"delay": 0.2}) for n in range(3)]
    router = start(static(*engines), flags={"policy": policy, "slow-start": span})
    fakes.apply(engines[0], health=503)
    router.wait_healthy("2/3")
    with Traffic(router.url, 80, lambda _: chat_call()) as traffic:
        wait_until(lambda: len(traffic.done) >= 10)
        assert fakes.records(engines[0]) == []
        back = time.monotonic()
        fakes.apply(engines[0], health=200)
        seen(router, "e0", warming=True)
        seen(router, "e0", warming=False)
        warm, had = time.monotonic(), len(fakes.records(engines[0]))
        wait_until(lambda: len(fakes.records(engines[0])) >= had + 20)
        end = time.monotonic()
        outcomes: list[Outcome] = traffic.end()
    assert kinds(outcomes) == {"ok": len(outcomes)}
    first = share_of_first(fakes, engines, back, back + span)
    then = share_of_first(fakes, engines, warm, end)
    print(
        f"R19 {router.name}: {policy}: an engine that comes back gets {first:.0%} of its share"
        f" in the first {span:g} s, then {then:.0%}"
    )
    assert 0 < first <= 0.5
    # In power_of_two latency goes on deciding: the slowest of three may lose most comparisons.
    assert then >= 0.6 or policy == "power_of_two"
