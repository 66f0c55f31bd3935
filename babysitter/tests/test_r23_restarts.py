"""R23: a crashing engine is restarted sensibly for ever."""

import os
import signal

from rig.processes import wait_until


def starts(babysat) -> list[float]:
    return [entry["time"] for entry in babysat.journal("start")]


def test_r23_quick_exits_become_a_crash_loop_that_goes_on_trying(babysit, registry) -> None:
    delays = {"restart_delay": 0.05, "backoff_max": 0.4}
    babysat = babysit(registry_url=registry.url, switches={"exit": "3"}, babysitter=delays)
    babysat.wait_for_state("crashloop")
    status, health = babysat.get("/health")
    assert (status, health["status"]) == (503, "unhealthy")
    assert "exit code 3" in health["detail"]
    at_crashloop = len(starts(babysat))
    assert at_crashloop >= 5
    wait_until(lambda: len(starts(babysat)) >= at_crashloop + 2, what="two more attempts")
    gaps = [late - early for early, late in zip(starts(babysat), starts(babysat)[1:], strict=False)]
    shortest = [0.8 * min(0.05 * 2**n, 0.4) for n in range(len(gaps))]
    assert all(gap >= least for gap, least in zip(gaps, shortest, strict=True))
    assert babysat.engine_name not in {call.body.get("name") for call in registry.calls}
    info = babysat.get("/info")[1]
    assert (info["last_exit"]["code"], info["last_exit"]["signal"]) == (3, None)
    assert info["last_exit"]["log"] == ["engine says hello", "about to end"]
    assert info["restart_count"] >= 6


def test_r23_an_engine_that_recovers_is_registered_and_its_next_end_is_no_crash_loop(
    babysit, registry
) -> None:
    babysat = babysit(
        registry_url=registry.url,
        switches={"exit": "0"},  # 0 is an end like any other
        babysitter={"stable_after": 0.2, "crash_exits": 2},
    )
    babysat.wait_for_state("crashloop")
    babysat.switch("exit", on=False)
    babysat.wait_for_state("ready")
    wait_until(lambda: registry.status(babysat.engine_name) == "running")
    wait_until(lambda: babysat.get("/health")[1]["state_seconds"] > 0.3, what="stable")
    os.kill(babysat.engine_pid(), signal.SIGKILL)
    babysat.program.wait_for_line("engine state=backoff was=ready detail='killed by SIGKILL")


def test_r23_a_registry_hears_that_an_engine_is_down_and_that_it_is_back(babysit, registry) -> None:
    babysat = babysit(registry_url=registry.url)
    wait_until(lambda: registry.status(babysat.engine_name) == "running")
    babysat.switch("loading")
    os.kill(babysat.engine_pid(), signal.SIGKILL)
    wait_until(lambda: registry.status(babysat.engine_name) == "restarting")
    babysat.switch("loading", on=False)
    wait_until(lambda: registry.status(babysat.engine_name) == "running")


def test_after_the_last_restart_the_engine_has_failed(babysit) -> None:
    babysat = babysit(switches={"exit": "7"}, babysitter={"max_restarts": 1})
    babysat.wait_for_state("failed")
    assert len(starts(babysat)) == 2
    assert babysat.get("/health")[0] == 503
    assert babysat.program.stop() == 0


def test_a_command_that_does_not_exist_is_told_and_tried_again(babysit) -> None:
    backend = {"type": "command", "command": "/no/such/engine"}
    babysat = babysit(backend=backend, babysitter={"crash_exits": 2})
    babysat.wait_for_state("crashloop")
    assert "No such file or directory: '/no/such/engine'" in babysat.get("/health")[1]["detail"]
