"""The life of an engine: start, watch, start again. The only one that changes its state."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from infinilm_babysitter.config import Config
from infinilm_babysitter.engine import Exit
from infinilm_babysitter.launch import Launch
from infinilm_babysitter.readiness import Finding, Foreign, Model, NotReady, Ready
from infinilm_babysitter.restarts import RestartPolicy
from infinilm_babysitter.states import EngineState, State
from infinilm_babysitter.waiting import cancel, wait_for_any

log = logging.getLogger(__name__)


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

    def engine_restarting(self) -> None:
        """It has ended and will be started again."""

    def engine_gone(self) -> None:
        """It will not be back."""


class Checker(Protocol):
    """Looks at the engine."""

    async def check(self, tree_root: int, health_path: str | None = None) -> Finding:
        """How the engine below the process `tree_root` is doing."""


@dataclass(frozen=True, slots=True)
class World:
    """What a supervisor acts on; tests put their own in its place."""

    spawn: Callable[[Launch], Run]
    checker: Checker
    announcer: Announcer
    port_holder: Callable[[], str]
    """Who but us listens on the engine's port, in words; empty if nobody does."""
    clock: Callable[[], float] = time.monotonic


class Supervisor:
    """Keeps one engine running until told to stop."""

    def __init__(self, config: Config, world: World) -> None:
        self._config = config
        self._world = world
        self._policy = RestartPolicy(config.restarts)
        self._ready_at: float | None = None
        self.engine_state = EngineState(world.clock)
        self.run_now: Run | None = None
        """The run whose processes may exist; None when there certainly are none."""
        self.launch: Launch | None = None
        self.models: tuple[Model, ...] = ()
        self.last_exit: Exit | None = None

    @property
    def restarts(self) -> int:
        """Restarts since the babysitter began."""
        return self._policy.total

    async def supervise(self, stop: asyncio.Event) -> None:
        """Run engines one after the other until `stop`; a running one is left to the caller."""
        while not stop.is_set():
            if not await self._wait_for_port(stop):
                return
            ended = await self._one_run(stop)
            if ended is None:
                return
            await self._after(ended, stop)

    async def _wait_for_port(self, stop: asyncio.Event) -> bool:
        """Until nobody holds the engine's port; False if told to stop before."""
        while holder := await asyncio.to_thread(self._world.port_holder):
            if self.engine_state.state is State.STOPPED:
                self.engine_state.change_state(State.BACKOFF)
            if holder != self.engine_state.detail:
                log.error("port in use reason=%r", holder)
            self.engine_state.note(holder)
            if await wait_for_any(stop, within=self._config.timing.probe_interval):
                return False
        return not stop.is_set()

    async def _one_run(self, stop: asyncio.Event) -> Exit | None:
        """Start the engine and watch it to its end; None if told to stop."""
        self._ready_at = None
        self.launch = launch = self._config.launch
        self.engine_state.change_state(State.STARTING)
        for note in launch.notes:
            log.warning("setting ignored reason=%r", note)
        try:
            self.run_now = run = self._world.spawn(launch)
        except OSError as error:
            return Exit(None, f"cannot be started: {error}", ())
        ended = await self._until_end(run, launch, stop)
        if ended is not None:
            self.run_now = None
        return ended

    async def _until_end(self, run: Run, launch: Launch, stop: asyncio.Event) -> Exit | None:
        end = asyncio.create_task(run.wait())
        watch = asyncio.create_task(self._watch(run, launch))
        halt = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((end, watch, halt), return_when=asyncio.FIRST_COMPLETED)
            if watch.done() and not end.done() and not halt.done():
                log.error("engine is ended reason=%r", watch.result())
                self.engine_state.note(watch.result())
                run.stop(self._config.timing.stop_timeout)
                await asyncio.wait((end, halt), return_when=asyncio.FIRST_COMPLETED)
            return end.result() if end.done() and not halt.done() else None
        finally:
            await cancel(end, watch, halt)

    async def _watch(self, run: Run, launch: Launch) -> str:
        """Look at the engine from start on; returns only with a reason to end it."""
        return await self._until_ready(run) or await self._while_ready(run, launch)

    async def _until_ready(self, run: Run) -> str:
        """Empty once the engine is ready, else why it never will be."""
        timing = self._config.timing
        deadline = self._world.clock() + timing.start_timeout
        while True:
            finding = await self._world.checker.check(run.keeper_pid)
            match finding:
                case Ready(models):
                    self._become_ready(models)
                    return ""
                case Foreign(reason):
                    return reason
                case NotReady(reason):
                    self.engine_state.note(reason)
                    if self._world.clock() >= deadline:
                        return f"not ready after {timing.start_timeout:g} s: {reason}"
            await asyncio.sleep(timing.probe_interval)

    def _become_ready(self, models: tuple[Model, ...]) -> None:
        self._ready_at = self._world.clock()
        self.models = models
        self.engine_state.change_state(State.READY)
        self._world.announcer.engine_ready(models)

    async def _while_ready(self, run: Run, launch: Launch) -> str:
        """Follow the models list; the reason once the engine has been broken for too long."""
        timing = self._config.timing
        broken_since: float | None = None
        while True:
            await asyncio.sleep(timing.models_interval)
            finding = await self._world.checker.check(run.keeper_pid, launch.health_path)
            match finding:
                case Ready(models):
                    self._follow_models(models)
                case Foreign(reason):
                    return reason
            if not (isinstance(finding, NotReady) and finding.broken):
                broken_since = None
                continue
            broken_since = self._world.clock() if broken_since is None else broken_since
            if self._world.clock() - broken_since >= timing.unhealthy_after:
                return f"broken for {timing.unhealthy_after:g} s: {finding.reason}"

    def _follow_models(self, models: tuple[Model, ...]) -> None:
        # Engines stamp every answer with the time of asking: that is no change.
        if [_stable(model) for model in models] != [_stable(model) for model in self.models]:
            log.info("models changed models=%s", [model["id"] for model in models])
            self.models = models
            self._world.announcer.engine_ready(models)

    async def _after(self, ended: Exit, stop: asyncio.Event) -> None:
        """Decide on what comes after a run, and wait for it."""
        now = self._world.clock()
        self.last_exit = ended
        ready_for = 0.0 if self._ready_at is None else now - self._ready_at
        planned = bool(self.launch and self.launch.ends_to_recover and self._ready_at is not None)
        decision = self._policy.after_exit(now, ready_for, planned=planned)
        if decision.state is State.FAILED:
            self.engine_state.change_state(State.FAILED, f"{ended.describe()}; no restarts left")
            self._world.announcer.engine_gone()
            await stop.wait()
            return
        detail = f"{ended.describe()}; next start in {decision.delay:.1f} s"
        self.engine_state.change_state(decision.state, detail)
        self._world.announcer.engine_restarting()
        await wait_for_any(stop, within=decision.delay)


def _stable(model: Model) -> dict[str, object]:
    return {key: model[key] for key in model if key != "created"}
