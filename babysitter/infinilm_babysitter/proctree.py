"""Processes as Linux's /proc shows them: trees, identity beyond the pid, signals without races.

Used by the keeper too, so it imports nothing but the standard library's small modules.
"""

import contextlib
import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
STUCK_AFTER = 5.0
"""Seconds that a SIGKILLed process may live on before it is reported as stuck."""

_libc = ctypes.CDLL(None, use_errno=True)


class Process(NamedTuple):
    """One process; `pid` and `start_time` together name it for as long as the machine is up."""

    pid: int
    parent: int
    state: str
    start_time: int
    """Clock ticks since boot."""


def become_subreaper() -> None:
    """From now on orphans among our descendants become our children, not those of init."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent does; for use between fork and exec."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def boot_id() -> str:
    """Text that is another one after each boot of the machine."""
    return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def read_process(pid: int) -> Process | None:
    """What /proc knows of `pid`, or None if there is no such process."""
    try:
        return _read(pid)
    except OSError:
        return None


def _read(pid: int) -> Process | None:
    """The same, but an OSError if there is no descriptor to read it with."""
    try:
        text = (PROC / str(pid) / "stat").read_bytes()
    except OSError as error:
        if error.errno in OUT_OF_DESCRIPTORS:
            raise
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return Process(pid, int(fields[1]), fields[0].decode(), int(fields[19]))


def command_name(pid: int) -> str:
    """Short name of the program, empty if unknown."""
    try:
        return (PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def snapshot() -> dict[int, Process]:
    """Every process of the machine that we can see."""
    with os.scandir(PROC) as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    # A list with holes would make strangers of our own.
    return {pid: process for pid in pids if (process := _read(pid))}


def descendants(root: int, table: Mapping[int, Process] | None = None) -> list[Process]:
    """Children of `root`, their children and so on; zombies too, `root` itself not."""
    children: dict[int, list[Process]] = {}
    for process in (snapshot() if table is None else table).values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    unseen = [root]
    while unseen:
        below = children.get(unseen.pop(), [])
        found += below
        unseen += [process.pid for process in below]
    return found


def is_running(process: Process) -> bool:
    """Whether this very process still runs; a zombie has ended, a reused pid is another one."""
    now = read_process(process.pid)
    return now is not None and now.start_time == process.start_time and now.state not in "ZX"


def send_signal(process: Process, number: int) -> None:
    """Signal exactly this process: if it has gone, or its pid names another one now, do nothing."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError:  # a kernel older than 5.3
        handle = -1
    try:
        if is_running(process):
            _deliver(handle, process.pid, number)
    finally:
        if handle >= 0:
            os.close(handle)


def _deliver(handle: int, pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if handle >= 0:
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(pid, number)


def carrying(variable: str, value: str) -> list[Process]:
    """Processes that were started with `variable=value` in their environment."""
    wanted = f"{variable}={value}".encode()
    found = []
    for process in snapshot().values():
        try:
            environment = (PROC / str(process.pid) / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            found.append(process)
    return found


def reap() -> tuple[dict[int, int], bool]:
    """Collect every child that has ended.

    Returns their wait statuses by pid, and whether any child is left. For a subreaper "none left"
    is the one sure sign that its whole tree is gone: a listing of /proc takes time, and a process
    that changes its parent meanwhile can escape it.
    """
    ended: dict[int, int] = {}
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return ended, True
            ended[pid] = status
    except ChildProcessError:
        return ended, False


def kill_all(
    find: Callable[[], list[Process]],
    is_over: Callable[[], bool],
    on_stuck: Callable[[list[Process]], None],
) -> None:
    """SIGKILL what `find` returns, again and again, until `is_over`.

    Returns only then. A process that survives SIGKILL (it hangs in the kernel) is told to
    `on_stuck` every few seconds, because waiting is the only thing left to do.
    """
    left: list[Process] = []
    report_at = time.monotonic() + STUCK_AFTER
    while not is_over():
        with contextlib.suppress(OSError):  # for want of a descriptor, say
            left = find()
            for process in left:
                send_signal(process, signal.SIGKILL)
        if time.monotonic() > report_at:
            on_stuck(left)
            report_at = time.monotonic() + STUCK_AFTER
        time.sleep(0.01)
