"""One run of an engine, seen from the babysitter: the other end of its keeper."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from infinilm_babysitter import descriptors, proctree
from infinilm_babysitter.launch import Launch
from infinilm_babysitter.logpump import LogPump
from infinilm_babysitter.redact import redact_argv

PACKAGE_PARENT = str(Path(__file__).resolve().parents[1])
TREE_VARIABLE = "INFINILM_ENGINE_TREE"
"""Set for every process of an engine; the value names the life of the babysitter it belongs to."""

NOT_FOR_ENGINES = frozenset({"INFINILM_REGISTRY_TOKEN", "INFINILM_ADMIN_TOKEN"})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Exit:
    """How an engine's run ended."""

    code: int | None
    """As subprocess has it: negative for a signal. None: never started, or nobody saw the end."""
    error: str
    """Why it could not be started, or why its end was not seen; else empty."""
    lines: tuple[str, ...]
    """The last lines of its output."""

    def describe(self) -> str:
        """The reason in words."""
        if self.code is None:
            return self.error
        if self.code < 0:
            return f"killed by {_signal_name(-self.code)}"
        return f"exit code {self.code}"


class Engine:
    """A keeper with an engine and all its processes behind it."""

    def __init__(self, launch: Launch, pump: LogPump, life: str) -> None:
        self.launch = launch
        self.pid: int | None = None
        """The engine's main process, once it runs."""
        self._pump = pump
        self._error = ""
        self._code: int | None = None
        cwd = str(Path.cwd() / (launch.cwd or ""))  # the keeper runs in /, and so would the engine
        self._keeper = self._spawn()
        descriptors.give_limit_back(self._keeper.pid)
        self._gone = asyncio.create_task(self._follow(), name="engine-events")
        self._send(json.dumps({"argv": launch.argv, "env": _env(launch, life), "cwd": cwd}))

    @property
    def keeper_pid(self) -> int:
        """Root of the engine's process tree."""
        return self._keeper.pid

    async def wait(self) -> Exit:
        """Until no process of the tree is left. May be awaited by several, and again."""
        return await asyncio.shield(self._gone)

    def stop(self, timeout: float) -> None:
        """SIGTERM to every process of the engine; SIGKILL after `timeout` seconds."""
        self._send(f"stop {timeout:g}")

    def kill(self) -> None:
        """SIGKILL to every process of the engine."""
        self._send("kill")
        self._keeper.send_signal(signal.SIGCONT)  # somebody may have stopped it

    def _spawn(self) -> subprocess.Popen[bytes]:
        output = self._pump.attach()
        try:
            return subprocess.Popen(
                [sys.executable, "-S", "-P", "-m", "infinilm_babysitter.keeper"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd="/",
                env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
                start_new_session=True,
                bufsize=0,
            )
        finally:
            os.close(output)

    def _send(self, line: str) -> None:
        assert self._keeper.stdin is not None  # for the type checker
        if not self._keeper.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it ends by itself: wait() tells how
                self._keeper.stdin.write(line.encode() + b"\n")

    async def _follow(self) -> Exit:
        """Read the keeper's events to their end."""
        assert self._keeper.stdout is not None  # for the type checker
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._keeper.stdout
        )
        said_goodbye = False
        while line := await reader.readline():
            said_goodbye = self._take(json.loads(line)) or said_goodbye
        transport.close()
        self._keeper.wait()
        if not said_goodbye:
            await self._end_tree_without_keeper()
        self._close_pipes()
        await asyncio.to_thread(self._pump.read_rest)
        return Exit(self._code, self._error, self._pump.last_lines())

    def _take(self, event: dict[str, object]) -> bool:
        """Act on one event; whether it was the last."""
        match event:
            case {"event": "started", "pid": int(pid)}:
                self.pid = pid
                argv = " ".join(redact_argv(self.launch.argv, self.launch.env))
                log.info("engine started pid=%d keeper_pid=%d argv=%r", pid, self.keeper_pid, argv)
            case {"event": "error", "message": message}:
                self._error = f"cannot be started: {message}"
            case {"event": "stuck", "pids": pids}:
                log.error("engine processes do not die pids=%s", pids)
            case {"event": "gone", "code": int() | None as code}:
                self._code = code
                return True
        return False

    async def _end_tree_without_keeper(self) -> None:
        """Somebody killed the keeper: what it kept is ours now, as we are a subreaper too."""
        log.error("keeper died, ending its engine keeper_pid=%d", self.keeper_pid)
        self._error = "its keeper was killed"
        babysitter = os.getpid()
        await asyncio.to_thread(
            proctree.kill_all,
            lambda: proctree.descendants(babysitter),
            lambda: not proctree.reap()[1],
            lambda left: log.error("engine processes do not die pids=%s", [p.pid for p in left]),
        )

    def _close_pipes(self) -> None:
        for pipe in (self._keeper.stdin, self._keeper.stdout):
            if pipe is not None:
                pipe.close()


def _env(launch: Launch, life: str) -> dict[str, str]:
    ours = {name: os.environ[name] for name in os.environ if name not in NOT_FOR_ENGINES}
    return {**ours, **launch.env, TREE_VARIABLE: life}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
