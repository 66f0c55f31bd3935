"""R12: a bad day does not multiply load."""

import time
from statistics import median

import pytest

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import closed_loop, static
from rig.load_client import Outcome, chat_call, kinds
from rig.routers import SLOW, Router, StartRouter
from rig.traffic import Traffic

RESET = {"die": {"at": "head", "how": "fin"}}


def load(router: Router, rate: int, seconds: float) -> tuple[list[Outcome], float]:
    """Outcomes of calls at a rate, and the share of a core that the router used."""
    cpu, started = router.cpu(), time.monotonic()
    with Traffic(router.url, rate, lambda _: chat_call()) as traffic:
        traffic.go_on(seconds)
        outcomes = traffic.end()
    return outcomes, (router.cpu() - cpu) / (time.monotonic() - started)


def attempts(outcomes: list[Outcome]) -> int:
    """The engines that were tried, as the answers say."""
    return sum(int((o.head and o.head.get("x-infinilm-attempts")) or 0) for o in outcomes)


def served(fakes: Farm, engines: list[FakeEngine]) -> int:
    return sum(len(fakes.records(engine)) for engine in engines)


@pytest.mark.parametrize(("rate", "seconds"), [(150, 1.0), pytest.param(200, 30.0, marks=SLOW)])
def test_engines_that_refuse_and_then_reset_get_few_attempts_more_than_there_are_requests(
    start: StartRouter, fakes: Farm, rate: int, seconds: float
) -> None:
    engines = [fakes.engine(f"e{number}") for number in range(3)]
    router = start(static(*engines))
    for engine in engines:
        fakes.apply(engine, listening=False)
    refused, cpu = load(router, rate, seconds)
    for engine in engines:
        fakes.apply(engine, listening=True, script=RESET)
    reset, cpu_reset = load(router, rate, seconds)
    tried = [attempts(refused), max(attempts(reset), served(fakes, engines))]
    for engine in engines:
        fakes.apply(engine, script={})
    returned = time.monotonic()
    while kinds(closed_loop(router.url, [chat_call()] * 30, 3)) != {"ok": 30}:
        assert time.monotonic() - returned < 10, "calls still fail"
    back = time.monotonic() - returned
    floor = 30 / len(refused)  # the budget never falls below three retries a second for 10 s
    ratios = [tried[0] / len(refused), tried[1] / len(reset)]
    print(
        f"R12 {router.name}: {ratios[0]:.3f} attempts a request while refused, {ratios[1]:.3f}"
        f" while reset, {cpu:.2f} and {cpu_reset:.2f} cores, all well {back:.2f} s after the return"
    )
    assert kinds(refused) == {"explained": len(refused)}
    assert kinds(reset) == {"explained": len(reset)}
    assert ratios[0] <= max(1.25, 1 + floor)
    assert ratios[1] <= 1.01
    assert max(cpu, cpu_reset) <= 1.0


def test_the_waits_before_retries_are_jittered(start: StartRouter, fakes: Farm) -> None:
    good, bad = fakes.engine("good"), fakes.engine("bad", listening=False)
    router = start(static(bad, good), flags={"health-fall": 100, "max-errors": 0})
    # Calls that arrive at once, every second of them at the engine that refuses: their second
    # attempts must reach the other engine spread over time. A router that waits for a processor
    # serves late timers together, or alike ones apart: what most rounds show counts. All of them
    # together stay within the budget of retries.
    spreads = [spread_of_retries(router) for _ in range(6)]
    print(f"R12 {router.name}: retries spread over {median(spreads) * 1e3:.0f} ms")
    assert median(spreads) >= 0.006


def spread_of_retries(router: Router) -> float:
    """Seconds between the first and the last answer of retried calls that were sent at once."""
    outcomes = closed_loop(router.url, [chat_call()] * 8, 8)
    assert kinds(outcomes) == {"ok": 8}
    retried = [
        o.first_byte for o in outcomes if o.head and o.head.get("x-infinilm-attempts") == "2"
    ]
    assert len(retried) >= 3  # a retry takes a turn too, so not every second call meets the bad one
    return max(retried) - min(retried)
