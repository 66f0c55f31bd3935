"""The keeper: a small process between babysitter and engine, so that no engine outlives either.

`python -m infinilm_babysitter.keeper` is started by the babysitter, never by hand. It is a session
leader and child subreaper: whatever the engine forks, and however it detaches itself, becomes a
descendant of the keeper, and the keeper ends only when none of them is left.

stdin   one line of JSON `{argv, env, cwd}`, then commands: `stop SECONDS` (SIGTERM, later SIGKILL)
        or `kill`. End of file means that the babysitter has died: everything is killed at once.
stdout  events, one JSON object a line: `{event:"started", pid}`, `{event:"error", message}`,
        `{event:"stuck", pids}`, and as the last one `{event:"gone", code}`, code as subprocess has
        it (negative: signal), null if the engine could not be started.
stderr  given to the engine as its stdout and stderr.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time

from infinilm_babysitter import proctree

LEFTOVER_GRACE = 2.0
"""Seconds that workers get to end after the engine's main process did."""
TICK = 0.05
HARMLESS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class Keeper:
    """One engine's whole life: start, wait, stop, leave nothing behind."""

    def __init__(self) -> None:
        self._engine = 0
        self._status: int | None = None
        self._inbox = b""
        self._kill_at: float | None = None
        self._wakeup, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Returns the exit code of the keeper, 0, once no process of the tree is left."""
        self._take_signals()
        proctree.become_subreaper()
        try:
            self._start(json.loads(self._first_line()))
        except (OSError, ValueError) as error:
            _tell(event="error", message=str(error))
        else:
            self._attend()
        self._end_tree()
        code = None if self._status is None else os.waitstatus_to_exitcode(self._status)
        _tell(event="gone", code=code)
        return 0

    def _take_signals(self) -> None:
        # Handlers, not SIG_IGN: an ignored signal would stay ignored in the engine.
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in (*HARMLESS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def _first_line(self) -> bytes:
        while b"\n" not in self._inbox:
            if not (data := os.read(0, 65536)):
                raise ValueError("the babysitter ended before it said what to start")
            self._inbox += data
        line, _, self._inbox = self._inbox.partition(b"\n")
        return line

    def _start(self, launch: dict[str, object]) -> None:
        keeper = os.getpid()
        engine = subprocess.Popen(  # noqa: S603  # starting what the user names is its purpose
            launch["argv"],  # type: ignore[call-overload]  # checked by the babysitter
            env=launch["env"],
            cwd=launch["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=2,
            stderr=2,
            start_new_session=True,
            # Safe here: this process has one thread.
            preexec_fn=lambda: proctree.die_with_parent(keeper),  # noqa: PLW1509
        )
        self._engine = engine.pid
        engine.returncode = 0  # we reap it ourselves, with all other children
        _tell(event="started", pid=engine.pid)

    def _attend(self) -> None:
        """Until the engine's main process has ended or its time to do so is over."""
        self._obey_inbox()  # commands may have come together with the first line
        while self._status is None and not self._late():
            self._wait()
        if self._kill_at is not None and not self._late():
            self._kill_at = min(self._kill_at, time.monotonic() + LEFTOVER_GRACE)
            while not self._tree_is_gone() and not self._late():
                self._wait()

    def _late(self) -> bool:
        return self._kill_at is not None and time.monotonic() >= self._kill_at

    def _wait(self) -> None:
        # Only while stopping is there something to look at that sends no signal.
        timeout = None if self._kill_at is None else TICK
        ready, _, _ = select.select([0, self._wakeup], [], [], timeout)
        if self._wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 4096)
        if 0 in ready:
            self._read_commands()
        self._tree_is_gone()

    def _read_commands(self) -> None:
        if data := os.read(0, 65536):
            self._inbox += data
            self._obey_inbox()
        else:
            self._kill_at = time.monotonic()

    def _obey_inbox(self) -> None:
        *commands, self._inbox = self._inbox.split(b"\n")
        for command in commands:
            self._obey(command.decode())

    def _obey(self, command: str) -> None:
        word, _, seconds = command.partition(" ")
        if word == "kill":
            self._kill_at = time.monotonic()
        elif word == "stop" and self._kill_at is None:
            self._kill_at = time.monotonic() + float(seconds)
            self._ask_to_end()

    def _ask_to_end(self) -> None:
        for process in proctree.descendants(os.getpid()):
            proctree.send_signal(process, signal.SIGTERM)
            proctree.send_signal(process, signal.SIGCONT)  # a stopped process could not act on it

    def _tree_is_gone(self) -> bool:
        """Reap what has ended; whether that was all."""
        ended, more = proctree.reap()
        if self._engine in ended:
            self._status = ended[self._engine]
        return not more

    def _end_tree(self) -> None:
        keeper = os.getpid()
        proctree.kill_all(
            lambda: proctree.descendants(keeper),
            self._tree_is_gone,
            lambda left: _tell(event="stuck", pids=[process.pid for process in left]),
        )


def _tell(**event: object) -> None:
    # The babysitter may have died; the tree still has to be ended.
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(Keeper().run())
