"""R4: a dead engine is hidden from clients."""

import time

import pytest

from rig.engine_process import EngineProcess, engine_processes
from rig.load_client import Outcome, chat_call
from rig.processes import Programs, wait_until
from rig.routers import SLOW, StartRouter
from rig.traffic import Traffic, faults, percentile, served_by

RATE = 50
# Seconds before and after the kill, and what p99 may rise beyond half of itself: of few calls it is
# but the slowest one.
SECONDS = [(0.8, 1.5, 0.6), pytest.param(20.0, 40.0, 0.05, marks=SLOW)]


@pytest.mark.parametrize(("before", "after", "room"), SECONDS)
def test_only_calls_that_a_killed_engine_had_in_hand_fail(
    start: StartRouter, run: Programs, before: float, after: float, room: float
) -> None:
    engines = engine_processes(run, 3)
    more = {"metadata": {"models": ["m"]}, "fail_timeout": 1}
    router = start([engine.static(**more) for engine in engines])
    with Traffic(router.url, RATE, lambda _: chat_call(script={"delay": 0.05})) as traffic:
        traffic.go_on(before)
        engines[0].program.kill()
        killed = time.monotonic()
        traffic.go_on(after)
        again = EngineProcess(run, "e0", ["m"], engines[0].port).wait()
        returned = time.monotonic()
        wait_until(lambda: served_since(traffic.done, "e0", returned), 15, "traffic for it again")
        back = time.monotonic() - returned
        outcomes = traffic.end()
    bad = [outcome for outcome in outcomes if outcome.kind != "ok"]
    p99_before = percentile([o.ended for o in outcomes if o.due < killed - 0.1], 0.99)
    p99_after = percentile([o.ended for o in outcomes if o.due > killed + 1], 0.99)
    print(
        f"R4 {router.name}: {len(bad)} of {len(outcomes)} calls failed,"
        f" p99 {p99_before * 1e3:.0f} ms before and {p99_after * 1e3:.0f} ms after the kill,"
        f" traffic again after {back:.1f} s"
    )
    for engine in (*engines, again):
        engine.close()
    assert len(bad) <= 3, faults(bad)
    assert [o for o in bad if not killed - 0.5 <= o.due <= killed + 1] == []
    assert p99_after <= 1.5 * p99_before + room
    assert back <= 15


def served_since(outcomes: list[Outcome], name: str, since: float) -> bool:
    """Whether an engine has answered a call that was sent after a moment."""
    return any(o.kind == "ok" and o.due > since and served_by(o) == name for o in outcomes[-99:])
