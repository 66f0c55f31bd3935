"""R16: passive ejection is bounded and heals."""

import time

import pytest

from rig.engine_script import Json
from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import closed_loop, static
from rig.load_client import chat_call
from rig.processes import wait_until
from rig.routers import SLOW, Router, StartRouter

FAULTS: dict[str, Json] = {
    "connect": {"listening": False},
    "reset": {"script": {"die": {"at": "head", "how": "rst"}}},
    "502": {"script": {"status": 502}},
    "503": {"script": {"status": 503}},
    "504": {"script": {"status": 504}},
    "first byte": {"script": {"delay": 2}},
}
WELL: Json = {"listening": True, "script": {}}
FLAGS = {"max-errors": 3, "response-timeout": 0.4}


def four(fakes: Farm) -> list[FakeEngine]:
    """Four engines for "m"; each has a model of its own too, so that it can be asked alone."""
    return [fakes.engine(f"e{number}", models=["m", f"only-{number}"]) for number in range(4)]


def ask(router: Router, model: str = "m", count: int = 1) -> None:
    closed_loop(router.url, [chat_call(model)] * count, 1)


def ejected(router: Router) -> list[str]:
    return [s["name"] for s in router.get("/stats")["services"] if s["ejected"]]


def await_ejected(router: Router, *names: str) -> None:
    """An answer may be here a moment before it counts: another thread reads the statistics."""
    wait_until(lambda: ejected(router) == [*names], 5, f"{names} to be ejected", every=0.005)


def ejection(router: Router, name: str) -> float:
    """How long an ejection that has just begun lasts, without traffic."""
    began = time.monotonic()
    await_ejected(router, name)
    wait_until(lambda: name not in ejected(router), 75, "the end of the ejection", every=0.01)
    return time.monotonic() - began


def served(fakes: Farm, engines: list[FakeEngine]) -> list[int]:
    return [len(fakes.records(engine)) for engine in engines]


def test_three_faults_in_a_row_of_any_kind_eject_an_engine_and_one_success_heals(
    start: StartRouter, fakes: Farm
) -> None:
    engines = four(fakes)
    router = start(static(*engines, fail_timeout=0.6), flags={**FLAGS, "health-fall": 100})
    for kind, fault in FAULTS.items():
        fakes.apply(engines[0], **fault)
        ask(router, "only-0", 2)
        assert ejected(router) == [], f"{kind}: two faults"
        ask(router, "only-0")
        ejection(router, "e0")
        fakes.apply(engines[0], **WELL)
        ask(router, "only-0")
        wait_until(lambda: ejected(router) == [], 5, f"{kind}: healed")
    assert router.service("e0")["error_count"] == 3 * len(FAULTS)
    assert router.service("e0")["healthy"] is True


@pytest.mark.parametrize(
    ("base", "times", "late"),
    [(0.5, 3, 0.6), pytest.param(5.0, 5, 0.2, marks=SLOW)],
    ids=["scaled", "real"],
)
def test_each_further_ejection_lasts_twice_as_long_and_success_starts_anew(
    start: StartRouter, fakes: Farm, base: float, times: int, late: float
) -> None:
    engines = four(fakes)
    more = {} if base == 5.0 else {"fail_timeout": base}
    router = start(static(*engines, **more), flags=FLAGS)
    fakes.apply(engines[0], script={"status": 503})
    ask(router, "only-0", 3)
    spans = [ejection(router, "e0")]
    while len(spans) < times:
        ask(router, "only-0")  # the probation request fails
        spans.append(ejection(router, "e0"))
    fakes.apply(engines[0], script={})
    ask(router, "only-0")
    fakes.apply(engines[0], script={"status": 503})
    ask(router, "only-0", 3)
    anew = ejection(router, "e0")
    print(
        f"R16 {router.name}: ejected for {[f'{span:.2f}' for span in spans]} s,"
        f" after a success for {anew:.2f} s"
    )
    wanted = [min(60.0, base * 2**number) for number in range(times)]
    for seen, want in zip([*spans, anew], [*wanted, base], strict=True):
        assert 0.8 * want - 0.1 <= seen <= 1.2 * want + late
    if base < 5:
        assert len({round(seen / want, 3) for seen, want in zip(spans, wanted, strict=True)}) > 1


def test_exactly_one_request_tries_an_ejected_engine_that_may_be_well_again(
    start: StartRouter, fakes: Farm
) -> None:
    engines = four(fakes)
    router = start(static(*engines, fail_timeout=0.5), flags={"max-errors": 3})
    fakes.apply(engines[0], script={"status": 503})
    ask(router, "only-0", 3)
    ejection(router, "e0")
    fakes.apply(engines[0], script={"status": 503, "delay": 0.3})
    before = served(fakes, engines)
    outcomes = closed_loop(router.url, [chat_call()] * 40, 40)
    after = served(fakes, engines)
    tries = after[0] - before[0]
    print(f"R16 {router.name}: {tries} of 40 calls at once tried the engine on probation")
    assert tries == 1
    assert sorted(outcome.status for outcome in outcomes) == [200] * 39 + [503]
    await_ejected(router, "e0")


def test_no_more_than_half_of_the_engines_are_left_out(start: StartRouter, fakes: Farm) -> None:
    engines = four(fakes)
    router = start(static(*engines, fail_timeout=30), flags={"max-errors": 3})
    for number in (0, 1):
        fakes.apply(engines[number], script={"status": 503})
        ask(router, f"only-{number}", 3)
    await_ejected(router, "e0", "e1")
    before = served(fakes, engines)
    ask(router, count=20)
    assert [n - b for n, b in zip(served(fakes, engines), before, strict=True)] == [0, 0, 10, 10]
    fakes.apply(engines[2], script={"status": 503})
    ask(router, "only-2", 3)
    await_ejected(router, "e0", "e1", "e2")
    before = served(fakes, engines)
    ask(router, count=20)
    shares = [n - b for n, b in zip(served(fakes, engines), before, strict=True)]
    print(f"R16 {router.name}: with three of four ejected, 20 calls go {shares}")
    assert min(shares) >= 3


def test_the_last_engine_of_a_model_is_never_left_out(start: StartRouter, fakes: Farm) -> None:
    engine = fakes.engine("e0")
    router = start(static(engine), flags=FLAGS)
    fakes.apply(engine, script={"die": {"at": "head", "how": "fin"}})
    ask(router, count=30)
    assert served(fakes, [engine]) == [30]
    fakes.apply(engine, script={})
    assert closed_loop(router.url, [chat_call()], 1)[0].kind == "ok"
