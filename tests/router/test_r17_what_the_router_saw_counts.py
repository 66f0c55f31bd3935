"""R17: the registry's opinion does not override what the router saw."""

import signal
import time

import pytest

from rig.engine_process import engine_processes
from rig.fake_registry import registration
from rig.farm import Farm
from rig.load_client import chat_call
from rig.processes import Programs, wait_until
from rig.routers import SLOW, StartRouter
from rig.traffic import Traffic, served_by

EVERYDAY = {"health-timeout": 0.5, "response-timeout": 1}
REAL = {"health-interval": 5, "health-timeout": 2, "registry-sync-interval": 5}


@pytest.mark.parametrize("flags", [EVERYDAY, pytest.param(REAL, marks=SLOW)], ids=["", "real"])
def test_an_engine_that_hangs_gets_nothing_however_well_the_registry_calls_it(
    start: StartRouter, run: Programs, fakes: Farm, flags: dict[str, float]
) -> None:
    engines = engine_processes(run, 2)
    registry = fakes.registry()
    registry.watch = False  # so that every sync brings the whole list, all of it healthy
    fakes.call(registry.publish([registration(e.name, e.port) for e in engines]))
    router = start(flags={**flags, "registry-url": registry.url}, healthy="2/2")
    wait_until(lambda: router.service("e0")["last_check"], 20, "the first probe")
    with Traffic(router.url, 20, lambda _: chat_call()) as traffic:
        wait_until(lambda: any(served_by(o) == "e0" for o in traffic.done), 10, "calls for e0")
        times = [time.monotonic()]
        engines[0].program.signal(signal.SIGSTOP)
        wait_until(lambda: not router.service("e0")["healthy"], 30, "e0 is taken out")
        times.append(time.monotonic())
        asked, syncs = router.service("e0")["request_count"], len(registry.requests)
        wait_until(lambda: len(registry.requests) >= syncs + 7, 60, "six syncs")
        seen = router.service("e0")
        engines[0].program.signal(signal.SIGCONT)
        times.append(time.monotonic())
        wait_until(lambda: router.service("e0")["healthy"], 30, "e0 is back")
        times.append(time.monotonic())
        wait_until(lambda: any(served_by(o) == "e0" for o in traffic.done[-20:]), 20, "calls again")
        outcomes = traffic.end()
    hung, out, continued, back = times
    lost = [outcome for outcome in outcomes if outcome.kind != "ok"]
    print(
        f"R17 {router.name}: out {out - hung:.1f} s after it hung, {len(lost)} of {len(outcomes)}"
        f" calls lost, {seen['request_count'] - asked} given to it in six syncs,"
        f" back {back - continued:.1f} s after it went on"
    )
    assert (seen["healthy"], seen["status"], seen["request_count"]) == (False, "running", asked)
    assert out - hung <= 15
    assert [outcome for outcome in lost if outcome.due > out + 0.1] == []
    # While it is down, probes come every second at least; two good ones bring it back.
    assert back - continued <= 2 * min(flags.get("health-interval", 0.1), 1) * 1.1 + 1
