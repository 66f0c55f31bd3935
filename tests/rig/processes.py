"""Start real programs on free ports, read what they print, stop them for certain."""

import contextlib
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
LISTENING = re.compile(r"listening on (http://\S+)")


def ports_of(worker: str, workers: int) -> range:
    """The ports that one of `workers` processes of pytest-xdist ("gw0", "gw1", ...) gives out.

    All lie below the range (32768 and up) that the kernel takes ports of outgoing connections from:
    one of these could otherwise hold it by the time that a program starts to listen.
    """
    return range(10_000, 32_000, 2)[int(worker.removeprefix("gw")) :: workers]


def _in_turn() -> Iterator[int]:
    ports = ports_of(
        os.environ.get("PYTEST_XDIST_WORKER", "gw0"),
        int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
    )
    first = random.randrange(len(ports))
    return itertools.cycle([*ports[first:], *ports[:first]])


_PORTS = _in_turn()


def free_port() -> int:
    """A TCP port on loopback that nobody listens on, with port + 1 free as well.

    Given in turn, so that a program may take its time until it listens, or stop listening for a
    while: before its port is given again, thousands of others are.
    """
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port


def wait_until(
    condition: Callable[[], T], timeout: float = 10.0, what: str = "condition", every: float = 0.02
) -> T:
    """Poll until `condition()` is truthy; its value. AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout} s")
        time.sleep(every)


class Program:
    """One child process in a session of its own; its output is collected line by line."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.lines: list[str] = []
        self._grown = threading.Condition()
        self.process = subprocess.Popen(
            [str(part) for part in argv],
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._grown:
                self.lines.append(line.rstrip("\n"))
                self._grown.notify_all()
        with self._grown:
            self._grown.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, pattern: str | re.Pattern[str], timeout: float = 20.0) -> re.Match[str]:
        """The first output line (old or new) in which `pattern` is found."""
        deadline = time.monotonic() + timeout
        seen = 0
        with self._grown:
            while True:
                for line in self.lines[seen:]:
                    if match := re.search(pattern, line):
                        return match
                seen = len(self.lines)
                left = deadline - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self._reader.is_alive()):
                    raise AssertionError(f"no line matches {pattern!r} in:\n{self.output}")
                self._grown.wait(min(left, 0.2))

    def wait_listening(self, timeout: float = 20.0) -> str:
        """The base URL that the program says it listens on."""
        return self.wait_for_line(LISTENING, timeout).group(1)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def wait(self, timeout: float = 20.0) -> int:
        """The exit code; AssertionError with the output if it does not end in time."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {timeout} s:\n{self.output}") from None
        self._reader.join(1)  # what it said last is in the output, unless a child still writes
        return code

    def kill(self) -> None:
        """SIGKILL the program and reap it."""
        self.signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM, wait; SIGKILL (and fail) if it does not end in time."""
        self.signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"ignored SIGTERM for {timeout} s:\n{self.output}") from None
        self._reader.join(5)
        return code


class Programs:
    """All programs of one test; whatever still runs at its end is killed."""

    def __init__(self) -> None:
        self.started: list[Program] = []

    def start(
        self,
        *argv: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Program:
        program = Program(argv, env=env, cwd=cwd)
        self.started.append(program)
        return program

    def python(
        self,
        script: str | Path,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Program:
        """Run a Python script of the project (path relative to its root) with this interpreter."""
        return self.start(sys.executable, ROOT / script, *arguments, env=env, cwd=cwd)

    def close(self) -> None:
        for program in reversed(self.started):
            if program.process.poll() is None:
                program.kill()
            program._reader.join(5)
            if program.process.stdout:
                program.process.stdout.close()


@contextlib.contextmanager
def programs() -> Iterator[Programs]:
    """`with programs() as run: run.python("registry/service_registry.py", "--port", "0")`."""
    started = Programs()
    try:
        yield started
    finally:
        started.close()
