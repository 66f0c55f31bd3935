"""R14: one lost probe does nothing, three do."""

import itertools

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import static
from rig.processes import wait_until
from rig.routers import Router, StartRouter

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
