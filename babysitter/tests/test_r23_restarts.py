"""R23: a crashing engine is restarted sensibly for ever."""

import itertools
import os
import signal

import pytest

from rig.processes import wait_until


def starts(babysat) -> list[float]:
    return [entry["time"] for entry in babysat.journal("start")]


SCALED = {"restart_delay": 0.05, "backoff_max": 0.4}
REAL = {"restart_delay": 1, "backoff_max": 60}


@pytest.mark.parametrize(
    ("delays", "lives", "attempts"),
    [
        (SCALED, 0.0, 7),
        pytest.param(REAL, 1.0, 9, marks=[pytest.mark.slow, pytest.mark.timeout(400)]),
    ],
)
def test_r23_quick_exits_become_a_crash_loop_that_goes_on_trying(
    babysit, registry, delays: dict[str, float], lives: float, attempts: int
) -> None:
    babysat = babysit(registry_url=registry.url, switches={"exit": f"3 {lives}"}, babysitter=delays)
    babysat.program.wait_listening()
    wait_until(lambda: babysat.state() == "crashloop", 60, "crashloop")
    assert len(starts(babysat)) >= 5
    status, health = babysat.get("/health")
    assert (status, health["status"], health["liveness"]) == (503, "unhealthy", "dead")
    assert "exit code 3" in health["detail"]
    wait_until(lambda: len(starts(babysat)) >= attempts, 300, f"{attempts} starts")
    times = starts(babysat)[:attempts]
    gaps = [late - early - lives for early, late in itertools.pairwise(times)]
    planned = [
        min(delays["restart_delay"] * 2**n, delays["backoff_max"]) for n in range(attempts - 1)
    ]
    print(f"R23 delays before restarts: {', '.join(f'{gap:.2f}' for gap in gaps)} s")
    assert all(gap >= 0.8 * plan for gap, plan in zip(gaps, planned, strict=True))
    # The upper bound has room for the start of two processes on a busy machine.
    assert all(gap <= 1.2 * plan + 3 for gap, plan in zip(gaps, planned, strict=True))
    assert babysat.engine_name not in {call.body.get("name") for call in registry.calls}
    info = babysat.get("/info")[1]
    assert (info["last_exit"]["code"], info["last_exit"]["signal"]) == (3, None)
    assert info["last_exit"]["reason"] == "exit code 3"
    assert info["last_exit"]["log"] == ["engine says hello", "about to end"]
    assert info["restart_count"] >= attempts - 1


def test_r23_the_last_fifty_lines_and_the_signal_tell_how_a_run_ended(babysit) -> None:
    said = "".join(f"line {number}\n" for number in range(200))
    babysat = babysit(switches={"say": said})
    babysat.wait_for_state("ready")
    os.kill(babysat.engine_pid(), signal.SIGSEGV)
    wait_until(lambda: babysat.get("/info")[1]["last_exit"], what="end seen")
    ended = babysat.get("/info")[1]["last_exit"]
    assert (ended["code"], ended["signal"], ended["reason"]) == (None, 11, "killed by SIGSEGV")
    assert ended["log"] == [f"line {number}" for number in range(150, 200)]


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


def test_r23_a_registry_shows_a_crash_loop_of_an_engine_that_it_knows(babysit, registry) -> None:
    babysat = babysit(registry_url=registry.url, babysitter={"crash_exits": 2})
    wait_until(lambda: registry.status(babysat.engine_name) == "running")
    babysat.switch("exit", text="1")
    os.kill(babysat.engine_pid(), signal.SIGKILL)
    wait_until(lambda: registry.status(babysat.engine_name) == "crashloop")
    babysat.switch("exit", on=False)
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
