"""R7: no process of an engine outlives its supervisor, however either of them ends."""

import json
import os
import signal
import time
from collections.abc import Callable

import pytest

from infinilm_babysitter import proctree
from infinilm_babysitter.proctree import Process
from rig.processes import wait_until

ROUNDS = pytest.mark.parametrize(
    "rounds",
    [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
)
LIMIT = 2.0
STOP_TIMEOUT = 1.0


def tree_with_workers(babysat) -> list[Process]:
    """Keeper, engine, its detached worker and that one's child."""
    wait_until((babysat.folder / "forked").exists, what="worker")
    babysat.wait_for_state("ready")
    tree = babysat.tree()
    assert len(tree) == 4
    return tree


def survivors(tree: list[Process], *, within: float = LIMIT) -> list[Process]:
    deadline = time.monotonic() + within
    while (alive := [each for each in tree if proctree.is_running(each)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.01)
    return alive


def start(babysit: Callable, **keys: object):
    babysat = babysit(engine=("--worker",), babysitter={"stop_timeout": STOP_TIMEOUT}, **keys)
    return babysat, tree_with_workers(babysat)


@ROUNDS
def test_r07_killing_the_babysitter_ends_the_whole_engine(babysit, rounds: int) -> None:
    for _ in range(rounds):
        babysat, tree = start(babysit)
        babysat.program.kill()
        assert survivors(tree) == []
        babysat.switch("forked", on=False)


@ROUNDS
def test_r07_stopping_the_babysitter_ends_a_worker_that_ignores_sigterm(
    babysit, rounds: int
) -> None:
    for _ in range(rounds):
        babysat, tree = start(babysit)
        assert babysat.program.stop() == 0, babysat.program.output
        assert survivors(tree, within=0) == [], "exit 0 means that nothing is left"
        babysat.switch("forked", on=False)


@ROUNDS
def test_r07_a_killed_engine_is_replaced_only_after_its_workers_have_gone(
    babysit, rounds: int
) -> None:
    babysat, tree = start(babysit)
    for _ in range(rounds):
        babysat.switch("forked", on=False)
        babysat.switch("old_tree", text=json.dumps([each.pid for each in tree]))
        before = len(babysat.journal("start"))
        os.kill(babysat.engine_pid(), signal.SIGKILL)
        assert survivors(tree) == []
        wait_until(lambda n=before: len(babysat.journal("start")) > n, what="next engine")
        assert babysat.journal("start")[-1]["old_alive"] == []
        tree = tree_with_workers(babysat)
        assert [each for each in tree if each.state == "Z"] == []


def test_r07_a_killed_keeper_takes_the_engine_along(babysit) -> None:
    babysat, tree = start(babysit)
    (keeper,) = [each for each in tree if each.parent == babysat.program.pid]
    os.kill(keeper.pid, signal.SIGKILL)
    assert survivors(tree) == []
    babysat.program.wait_for_line("keeper died")
    wait_until(lambda: len(babysat.journal("start")) == 2, what="next engine")


def test_r07_survivors_of_a_double_kill_are_ended_by_the_next_babysitter(babysit) -> None:
    babysat, tree = start(babysit)
    (keeper,) = [each for each in tree if each.parent == babysat.program.pid]
    os.kill(keeper.pid, signal.SIGSTOP)  # it cannot act while the babysitter dies
    babysat.program.kill()
    os.kill(keeper.pid, signal.SIGKILL)
    alive = survivors(tree, within=0.5)
    assert len(alive) == 2, "the detached worker and its child have nobody left"
    babysat.switch("forked", on=False)
    again = babysit(engine=("--worker",), port=babysat.port)
    again.program.wait_for_line("survivors of the last life ended")
    tree_with_workers(again)
    assert survivors(tree, within=0) == []


def test_r07_a_second_babysitter_of_the_same_engine_refuses_to_start(babysit) -> None:
    babysat, _ = start(babysit)
    rival = babysit(engine=("--worker",))
    assert rival.program.wait() == 1
    assert f"pid {babysat.program.pid} runs this engine" in rival.program.output
    assert babysat.state() == "ready"
