"""Watches one run of an engine: until it is ready, while it serves, and what is ordered meanwhile.

Its supervisor starts and ends it; both change the engine's state, and nobody else does.
"""

import asyncio
import logging

from infinilm_babysitter.config import Config
from infinilm_babysitter.launch import Launch
from infinilm_babysitter.liveness import Belief, Verdict
from infinilm_babysitter.orders import Orders
from infinilm_babysitter.readiness import Finding, Foreign, Model, NotReady, Ready, model_ids
from infinilm_babysitter.states import EngineState, State
from infinilm_babysitter.world import Run, World

ORDERED = "restart, as ordered"
SERVING = frozenset({State.READY, State.DRAINING})

log = logging.getLogger(__name__)


class Watch:
    """What is known of one run."""

    def __init__(
        self, config: Config, world: World, state: EngineState, orders: Orders, run: Run
    ) -> None:
        self._config = config
        self._world = world
        self._state = state
        self._orders = orders
        self._run = run
        self._pulse = world.take_pulse()
        self.ready_at: float | None = None
        self.models: tuple[Model, ...] = ()
        self.drained = False
        """It was told to take no requests, and has none any more."""

    @property
    def belief(self) -> Belief:
        """How alive the engine is."""
        return self._pulse.belief

    @property
    def metrics(self) -> str | None:
        """The kind of metrics that its liveness is judged by; None: none so far."""
        return self._pulse.metrics

    async def follow(self, launch: Launch) -> str:
        """Look at the engine from start on; returns only with a reason to end it."""
        return await self._until_ready() or await self._while_ready(launch)

    async def obey(self) -> str:
        """Do what is ordered; returns, with the reason, when the engine may be ended."""
        while True:
            await self._orders.changed.wait()
            self._orders.changed.clear()
            if self._orders.restart.is_set():
                if self._state.state in SERVING:
                    await self._drain(self._orders.restart_at_once)
                return ORDERED
            if self._state.state not in SERVING:
                continue  # it is drained, if at all, as soon as it is ready
            if self._orders.drained and not self.drained:
                await self._drain(self._orders.changed)
            elif not self._orders.drained and self._state.state is State.DRAINING:
                self.drained = False
                self._state.change_state(State.READY, "serves again, as ordered")
                self._announce()

    async def _drain(self, hurry: asyncio.Event) -> None:
        """Let running answers end, and no new ones begin; `hurry` ends the waiting."""
        if self._state.state is State.READY:
            self._state.change_state(State.DRAINING, "as ordered")
        self._announce()
        await self._world.drain(hurry)
        if not hurry.is_set():
            self.drained = True
            self._state.note("drained")

    async def _until_ready(self) -> str:
        """Empty once the engine is ready, else why it never will be."""
        timing = self._config.timing
        deadline = self._world.clock() + timing.start_timeout
        while True:
            finding = await self._world.checker.check(self._run.keeper_pid)
            match finding:
                case Ready(models):
                    self._become_ready(models)
                    return ""
                case Foreign(reason):
                    return reason
                case NotReady(reason):
                    self._state.note(reason)
                    if self._world.clock() >= deadline:
                        return f"not ready after {timing.start_timeout:g} s: {reason}"
            await asyncio.sleep(timing.probe_interval)

    def _become_ready(self, models: tuple[Model, ...]) -> None:
        self.ready_at = self._world.clock()
        self.models = models
        self._state.change_state(State.READY)
        if self._orders.drained:
            self._state.change_state(State.DRAINING, "as ordered before")
            self._orders.changed.set()
        else:
            self._announce()

    async def _while_ready(self, launch: Launch) -> str:
        """Follow models and liveness; the reason once the engine has been broken for too long."""
        timing = self._config.timing
        broken_since: float | None = None
        await self._look(launch.health_path)  # at once, to know its metrics while it is well
        await self._world.memory.note_running(self._run.keeper_pid)
        while True:
            await asyncio.sleep(timing.models_interval)
            finding = await self._look(launch.health_path)
            if isinstance(finding, Foreign):
                return finding.reason
            if self._is_to_be_replaced():
                return f"stalled: {self._state.detail}"
            if not (isinstance(finding, NotReady) and finding.broken):
                broken_since = None
                continue
            broken_since = self._world.clock() if broken_since is None else broken_since
            if self._world.clock() - broken_since >= timing.unhealthy_after:
                return f"broken for {timing.unhealthy_after:g} s: {finding.reason}"

    def _is_to_be_replaced(self) -> bool:
        stalled = self.belief.verdict is Verdict.STALLED
        return stalled and self._config.restart_when_stalled and self._state.state is State.READY

    async def _look(self, health_path: str | None) -> Finding:
        finding, measured = await asyncio.gather(
            self._world.checker.check(self._run.keeper_pid, health_path),
            self._pulse.measure(model_ids(self.models)[0]),
        )
        if isinstance(finding, Ready):
            self._follow_models(finding.models)
        was = self.belief.verdict
        self._follow_liveness(was, self._pulse.take(finding, measured))
        return finding

    def _follow_models(self, models: tuple[Model, ...]) -> None:
        # Engines stamp every answer with the time of asking: that is no change.
        if [_stable(model) for model in models] != [_stable(model) for model in self.models]:
            log.info("models changed models=%s", model_ids(models))
            self.models = models
            self._announce()

    def _follow_liveness(self, was: Verdict, belief: Belief) -> None:
        if belief.verdict is was:
            return
        log.info("engine liveness=%s was=%s", belief.verdict, was)
        if Verdict.STALLED not in {was, belief.verdict}:
            return
        if belief.verdict is Verdict.STALLED:
            what = "answer" if belief.hung else f"token, with {belief.requests:g} requests to do,"
            detail = f"no {what} for {self._config.timing.stalled_after:g} s"
            log.error("engine stalled reason=%r", detail)
        else:
            detail = "no longer stalled"
        self._state.note(detail)
        self._announce()

    def _announce(self) -> None:
        """Tell the registry how the engine is now."""
        if self._state.state is State.DRAINING:
            self._world.announcer.engine_draining()
        elif self.belief.verdict is Verdict.STALLED:
            self._world.announcer.engine_stalled()
        else:
            self._world.announcer.engine_ready(self.models)


def _stable(model: Model) -> dict[str, object]:
    return {key: model[key] for key in model if key != "created"}
