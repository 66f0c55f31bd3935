"""R7: no process of an engine outlives its supervisor, however either of them ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infinilm_babysitter import proctree
from infinilm_babysitter.proctree import Process
from rig.processes import ROOT, wait_until

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


def zombies(tree: list[Process]) -> list[Process]:
    """Those of `tree` that have ended and that nobody has reaped."""
    left = (proctree.read_process(each.pid) for each in tree)
    known = {(each.pid, each.start_time) for each in tree}
    return [each for each in left if each and (each.pid, each.start_time) in known]


class Rounds:
    """Counts what survived each of several ends, and how long the last one took to go."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._took: list[float] = []
        self._left = 0

    def end(self, tree: list[Process], *, since: float, within: float = LIMIT) -> None:
        """Wait for the end of `tree`; what is left afterwards has survived."""
        self._left += len(survivors(tree, within=within))
        self._took.append(time.monotonic() - since)

    def tell(self) -> None:
        print(
            f"R7 {self._what}: {self._left} survivors in {len(self._took)} rounds,"
            f" all gone after {max(self._took):.2f} s at most"
        )
        assert self._left == 0


def start(babysit: Callable, **keys: object):
    babysat = babysit(engine=("--worker",), babysitter={"stop_timeout": STOP_TIMEOUT}, **keys)
    return babysat, tree_with_workers(babysat)


@ROUNDS
def test_r07_killing_the_babysitter_ends_the_whole_engine(babysit, rounds: int) -> None:
    told = Rounds("babysitter killed with -9")
    for _ in range(rounds):
        babysat, tree = start(babysit)
        began = time.monotonic()
        babysat.program.kill()
        told.end(tree, since=began)
        babysat.switch("forked", on=False)
    told.tell()


@ROUNDS
def test_r07_stopping_the_babysitter_ends_a_worker_that_ignores_sigterm(
    babysit, rounds: int
) -> None:
    told = Rounds(f"babysitter stopped, stop_timeout {STOP_TIMEOUT:g} s")
    for _ in range(rounds):
        babysat, tree = start(babysit)
        began = time.monotonic()
        assert babysat.program.stop() == 0, babysat.program.output
        told.end(tree, since=began, within=0)  # exit 0 means that nothing is left
        babysat.switch("forked", on=False)
    told.tell()


@ROUNDS
def test_r07_a_killed_engine_is_replaced_only_after_its_workers_have_gone(
    babysit, rounds: int
) -> None:
    told = Rounds("engine killed with -9")
    babysat, tree = start(babysit)
    for _ in range(rounds):
        babysat.switch("forked", on=False)
        babysat.switch("old_tree", text=json.dumps([each.pid for each in tree]))
        before = len(babysat.journal("start"))
        began = time.monotonic()
        os.kill(babysat.engine_pid(), signal.SIGKILL)
        told.end(tree, since=began)
        wait_until(lambda n=before: len(babysat.journal("start")) > n, what="next engine")
        assert babysat.journal("start")[-1]["old_alive"] == []
        assert zombies(tree) == []
        tree = tree_with_workers(babysat)
    told.tell()


class Launched:
    """A babysitter that the launch script has started."""

    def __init__(self, settings, logs: Path) -> None:
        self._settings = settings
        self._env = {**os.environ, "LOG_DIR": str(logs), "INFINILM_PYTHON": sys.executable}
        self._logs = logs

    def script(self, name: str, *arguments: str | Path) -> None:
        argv = [ROOT / name, *arguments]
        done = subprocess.run(
            argv, env=self._env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> list[Process]:
        """The babysitter and all below it, once its engine is ready."""
        (self._settings.folder / "forked").unlink(missing_ok=True)
        self.script("launch_babysitter.sh", self._settings.file)
        (pid_file,) = self._logs.glob("babysitter_*.pid")
        babysitter = proctree.read_process(int(pid_file.read_text().split()[0]))
        assert babysitter is not None
        return [babysitter, *proctree.descendants(babysitter.pid)]


@pytest.fixture
def launched(configure, tmp_path: Path) -> Iterator[Launched]:
    settings = configure(engine=("--worker",), babysitter={"stop_timeout": STOP_TIMEOUT})
    made = Launched(settings, tmp_path / "logs")
    yield made
    made.script("stop_babysitter.sh")


@ROUNDS
def test_r07_the_stop_script_leaves_nothing(launched: Launched, rounds: int) -> None:
    told = Rounds(f"stop script, stop_timeout {STOP_TIMEOUT:g} s")
    for _ in range(rounds):
        tree = launched.start()
        assert len(tree) == 5, "babysitter, keeper, engine, worker and its child"
        began = time.monotonic()
        launched.script("stop_babysitter.sh")
        told.end(tree, since=began, within=0)
    told.tell()


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
    babysat.switch("old_tree", text=json.dumps([each.pid for each in alive]))
    again = babysit(engine=("--worker",), port=babysat.port)
    again.program.wait_for_line("survivors of the last life ended")
    tree_with_workers(again)
    assert survivors(tree, within=0) == []
    assert again.journal("start")[-1]["old_alive"] == [], "they were ended first"


def test_r07_a_second_babysitter_of_the_same_engine_refuses_to_start(babysit) -> None:
    babysat, _ = start(babysit)
    rival = babysit(engine=("--worker",))
    assert rival.program.wait() == 1
    assert f"pid {babysat.program.pid} runs this engine" in rival.program.output
    assert babysat.state() == "ready"
