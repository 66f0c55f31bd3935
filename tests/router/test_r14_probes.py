"""R14: one lost probe does nothing, three do."""

import itertools
import time

import pytest

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import static
from rig.processes import wait_until
from rig.routers import SLOW, Router, StartRouter

FLAGS = {"health-interval": 0.03, "health-fall": 3, "health-rise": 2}


def count_probes(fakes: Farm, engine: FakeEngine) -> int:
    async def read() -> int:
        return len(engine.probes)

    return fakes.call(read())


def healthy(router: Router, engine: FakeEngine) -> bool:
    return bool(router.service(engine.name)["healthy"])


def test_probes_that_alternate_change_nothing(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine), flags=FLAGS)
    # The first probe of all counts by itself: only those after it are the matter of this test.
    wait_until(lambda: router.service(engine.name)["last_check"], what="first probe")
    seen = count_probes(fakes, engine)
    fakes.apply(engine, healths=[503, 200, 503, 503, 200] * 12)
    while engine.settings.healths:
        assert healthy(router, engine)
    assert count_probes(fakes, engine) >= seen + 60
    assert healthy(router, engine)


@pytest.mark.parametrize(("interval", "timeout"), [(0.3, 1.0), pytest.param(5.0, 2.0, marks=SLOW)])
def test_an_engine_is_out_after_three_intervals_and_a_probe(
    start: StartRouter, fakes: Farm, engine: FakeEngine, interval: float, timeout: float
) -> None:
    flags = {**FLAGS, "health-interval": interval, "health-timeout": timeout}
    router = start(static(engine), flags=flags)
    wait_until(lambda: router.service(engine.name)["last_check"], what="first probe")
    fakes.apply(engine, health=503)
    failing = time.monotonic()
    wait_until(lambda: not healthy(router, engine), 30)
    out = time.monotonic() - failing
    print(f"R14 {router.name}: out {out:.2f} s after its probes began to fail every {interval} s")
    assert out <= 3 * interval + timeout


# In the everyday lane the times are so short that moments of waiting for a processor show: without
# jitter, some pair would be in step in every round.
@pytest.mark.parametrize(
    ("interval", "rounds", "share"), [(0.3, 10, 0.5), pytest.param(5.0, 20, 0.2, marks=SLOW)]
)
def test_no_two_engines_are_probed_in_step(
    start: StartRouter, fakes: Farm, interval: float, rounds: int, share: float
) -> None:
    engines = [fakes.engine(f"e{number}") for number in range(20)]
    router = start(static(*engines), flags={"health-interval": interval, "health-timeout": 2})
    # The first probes, all of them at once, are none of those that are counted.
    wait_until(
        lambda: min(count_probes(fakes, e) for e in engines) > rounds,
        2 * interval * rounds,
        every=0.1,
    )
    times = [[at for at, _ in fakes.call(copy_probes(e))][1 : rounds + 1] for e in engines]
    near = interval * 0.002  # 10 ms of 5 s
    in_step = [
        sum(abs(one - other) < near for one, other in zip(*pair, strict=True))
        for pair in itertools.combinations(times, 2)
    ]
    print(
        f"R14 {router.name}: of {len(in_step)} pairs of 20 engines none was probed within"
        f" {near * 1e3:g} ms in more than {max(in_step)} of {rounds} rounds"
    )
    assert max(in_step) <= share * rounds


def test_three_failures_take_an_engine_out_and_two_successes_bring_it_back(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine), flags=FLAGS)
    fakes.apply(engine, healths=[503, 503, 503, 200, 503, 200], health=503)
    wait_until(lambda: not healthy(router, engine))
    while engine.settings.healths:
        assert not healthy(router, engine)
    fakes.apply(engine, health=200)
    wait_until(lambda: healthy(router, engine))


def test_at_most_one_probe_of_an_engine_is_under_way(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine), flags={**FLAGS, "health-timeout": 0.5})
    fakes.apply(engine, health_delay=0.2)
    seen = count_probes(fakes, engine)
    wait_until(lambda: count_probes(fakes, engine) >= seen + 6)
    times = [at for at, _ in fakes.call(copy_probes(engine))][seen + 1 :]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) >= 0.19
    assert healthy(router, engine)


async def copy_probes(engine: FakeEngine) -> list[tuple[float, str]]:
    return list(engine.probes)
