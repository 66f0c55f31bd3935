"""What a supervisor acts on, as far as it needs to know it; tests put their own in its place."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from infinilm_babysitter.engine import Exit
from infinilm_babysitter.launch import Launch
from infinilm_babysitter.liveness import Belief
from infinilm_babysitter.pulse import Measured
from infinilm_babysitter.readiness import Finding, Model


class Run(Protocol):
    """One run of an engine, with all its processes."""

    pid: int | None

    @property
    def keeper_pid(self) -> int:
        """Root of its process tree."""

    async def wait(self) -> Exit:
        """Until no process of it is left."""

    def stop(self, timeout: float) -> None:
        """Ask it to end, kill it after `timeout` seconds."""

    def kill(self) -> None:
        """Kill it."""


class Announcer(Protocol):
    """Told when what the world should know of the engine changes."""

    def engine_ready(self, models: tuple[Model, ...]) -> None:
        """It serves these models."""

    def engine_stalled(self) -> None:
        """It has work and does not get on."""

    def engine_draining(self) -> None:
        """It takes no new requests."""

    def engine_restarting(self, *, crashing: bool) -> None:
        """It has ended and will be started again; `crashing`: it has done so too often lately."""

    def engine_gone(self) -> None:
        """It will not be back."""


class Checker(Protocol):
    """Looks at the engine."""

    async def check(self, tree_root: int, health_path: str | None = None) -> Finding:
        """How the engine below the process `tree_root` is doing."""


class Pulse(Protocol):
    """The liveness of one run."""

    belief: Belief

    @property
    def metrics(self) -> str | None:
        """The kind of metrics that are read; None: none so far."""

    async def measure(self, model: str) -> Measured | None:
        """One look, beside the one for readiness; None if it failed."""

    def take(self, finding: Finding, measured: Measured | None) -> Belief:
        """The verdict after it."""


class Memory(Protocol):
    """Memory of the devices that engines compute on."""

    async def note_running(self, tree_root: int) -> None:
        """The engine below this process is ready: what it holds now is its own."""

    async def wait_until_free(self, note: Callable[[str], None]) -> None:
        """Until the engine that has ended holds no memory any more, within limits."""


@dataclass(frozen=True, slots=True)
class World:
    """Everything around the supervisor."""

    spawn: Callable[[Launch], Run]
    checker: Checker
    take_pulse: Callable[[], Pulse]
    announcer: Announcer
    memory: Memory
    drain: Callable[[asyncio.Event], Awaitable[None]]
    """Until nobody waits for an answer of the engine, or the event is set."""
    port_holder: Callable[[], str]
    """Who but us listens on the engine's port, in words; empty if nobody does."""
    clock: Callable[[], float] = time.monotonic
