"""Processes of an engine that outlived its babysitter, and the note that lets us find them.

The keeper makes such survivors all but impossible; this is for the day when babysitter and keeper
are killed in the same moment. The note lies beside the engine's log.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infinilm_babysitter import proctree
from infinilm_babysitter.engine import TREE_VARIABLE
from infinilm_babysitter.proctree import Process

log = logging.getLogger(__name__)


class AlreadyRunningError(Exception):
    """Another babysitter that lives uses the same note."""


@dataclass(frozen=True, slots=True)
class Note:
    """What one babysitter leaves for the next."""

    boot: str
    life: str
    babysitter: tuple[int, int]
    """Process id and start time."""
    tree: tuple[tuple[int, int], ...]
    """The same for the keeper and every process of the engine."""


class Notebook:
    """Keeps the note of this babysitter's life up to date."""

    def __init__(self, path: Path, life: str) -> None:
        self._path = path
        self._life = life
        self._written: Note | None = None
        self.last_pids: frozenset[int] = frozenset()
        """Processes of the last life's engine."""

    def end_survivors(self, give_up: Callable[[], bool]) -> int:
        """Kill what is left of the last life and return how many processes that were.

        Returns only when none is left, or when `give_up` says so.

        Raises:
            AlreadyRunningError: the babysitter of that life still runs.
        """
        note = _read(self._path)
        if note is None or note.boot != proctree.boot_id():
            return 0
        pid, start_time = note.babysitter
        if pid != os.getpid() and _living((pid, start_time)):
            raise AlreadyRunningError(f"babysitter with pid {pid} runs this engine ({self._path})")
        found = _survivors(note)
        self.last_pids = frozenset({each for each, _ in note.tree} | {each.pid for each in found})
        for process in found:
            log.warning("ending survivor of the last life pid=%d", process.pid)
        proctree.kill_all(
            lambda: _survivors(note),
            lambda: give_up() or not _survivors(note),
            lambda left: log.error("survivors do not die pids=%s", [each.pid for each in left]),
        )
        return len(found)

    def write(self, keeper_pid: int | None) -> None:
        """Note the processes of the tree as they are now; a fault in that is only logged."""
        try:
            note = self._note(keeper_pid)
            if note != self._written:
                self._write(note)
        except OSError as error:
            log.warning("cannot note the engine's processes file=%s why=%r", self._path, str(error))

    def _note(self, keeper_pid: int | None) -> Note:
        tree = _tree(keeper_pid) if keeper_pid else ()
        me = proctree.read_process(os.getpid())
        babysitter = (me.pid, me.start_time) if me else (os.getpid(), 0)
        return Note(proctree.boot_id(), self._life, babysitter, tree)

    def _write(self, note: Note) -> None:
        fresh = self._path.with_name(f"{self._path.name}.new")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps({name: getattr(note, name) for name in Note.__slots__}))
        fresh.replace(self._path)
        self._written = note

    def remove(self) -> None:
        """Nothing is left that the next life would have to know."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove the note file=%s why=%r", self._path, str(error))


def _tree(keeper_pid: int) -> tuple[tuple[int, int], ...]:
    processes = [*proctree.descendants(keeper_pid), proctree.read_process(keeper_pid)]
    return tuple(sorted((each.pid, each.start_time) for each in processes if each))


def _survivors(note: Note) -> list[Process]:
    """Noted processes, those with the mark of that life, all below them; no zombies."""
    found = {each.pid: each for each in proctree.carrying(TREE_VARIABLE, note.life)}
    found |= {each.pid: each for noted in note.tree if (each := _living(noted))}
    for root in list(found):
        found |= {each.pid: each for each in proctree.descendants(root)}
    found.pop(os.getpid(), None)
    return [each for each in found.values() if proctree.is_running(each)]


def _living(noted: tuple[int, int]) -> Process | None:
    pid, start_time = noted
    process = proctree.read_process(pid)
    if process and process.start_time == start_time and proctree.is_running(process):
        return process
    return None


def _read(path: Path) -> Note | None:
    try:
        raw = json.loads(path.read_text())
        pid, start_time = raw["babysitter"]
        tree = tuple((int(each), int(when)) for each, when in raw["tree"])
        return Note(str(raw["boot"]), str(raw["life"]), (int(pid), int(start_time)), tree)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("cannot read the note of the last life file=%s why=%r", path, str(error))
        return None
