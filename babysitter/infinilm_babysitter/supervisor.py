"""The life of an engine: start, watch, start again."""

import asyncio
import logging

from infinilm_babysitter.config import Config
from infinilm_babysitter.engine import Exit
from infinilm_babysitter.launch import Launch
from infinilm_babysitter.liveness import Verdict
from infinilm_babysitter.orders import Orders
from infinilm_babysitter.readiness import Model
from infinilm_babysitter.restarts import RestartPolicy
from infinilm_babysitter.states import EngineState, State
from infinilm_babysitter.waiting import cancel, wait_for_any
from infinilm_babysitter.watch import ORDERED, SERVING, Watch
from infinilm_babysitter.world import Run, World

log = logging.getLogger(__name__)


class Supervisor:
    """Keeps one engine running until told to stop."""

    def __init__(self, config: Config, world: World) -> None:
        self._config = config
        self._world = world
        self._policy = RestartPolicy(config.restarts)
        self._watch: Watch | None = None
        self.orders = Orders()
        self.engine_state = EngineState(world.clock)
        self.run_now: Run | None = None
        """The run whose processes may exist; None when there certainly are none."""
        self.launch: Launch | None = None
        self.last_exit: Exit | None = None

    @property
    def restarts(self) -> int:
        """Restarts since the babysitter began."""
        return self._policy.total

    @property
    def models(self) -> tuple[Model, ...]:
        """What the engine listed last."""
        return self._watch.models if self._watch else ()

    @property
    def drained(self) -> bool:
        """The engine was told to take no requests, and has none any more."""
        return self._watch is not None and self._watch.drained

    @property
    def liveness(self) -> Verdict | None:
        """How alive the engine is; None while it starts."""
        if self.engine_state.state is State.STARTING:
            return None
        if self._watch is None or self.engine_state.state not in SERVING:
            return Verdict.DEAD
        return self._watch.belief.verdict

    @property
    def metrics(self) -> str | None:
        """The kind of metrics that liveness is judged by; None: none so far."""
        return self._watch.metrics if self._watch else None

    async def supervise(self, stop: asyncio.Event) -> None:
        """Run engines one after the other until `stop`; a running one is left to the caller."""
        while not stop.is_set():
            if not (await self._wait_for_port(stop) and await self._wait_for_memory(stop)):
                return
            ended = await self._one_run(stop)
            if ended is None:
                return
            await self._after(ended, stop)

    async def _wait_for_port(self, stop: asyncio.Event) -> bool:
        """Until nobody holds the engine's port; False if told to stop before."""
        while holder := await self._port_holder():
            if self.engine_state.state is State.STOPPED:
                self.engine_state.change_state(State.BACKOFF)
            if holder != self.engine_state.detail:
                log.error("port in use reason=%r", holder)
            self.engine_state.note(holder)
            if await wait_for_any(stop, within=self._config.timing.probe_interval):
                return False
        return not stop.is_set()

    async def _port_holder(self) -> str:
        try:
            return await asyncio.to_thread(self._world.port_holder)
        except OSError as error:  # for want of a descriptor, say
            return f"cannot see who holds port {self._config.port}: {error}"

    async def _wait_for_memory(self, stop: asyncio.Event) -> bool:
        """Until the last engine's memory is free; False if told to stop before."""
        waiting = asyncio.create_task(self._world.memory.wait_until_free(self.engine_state.note))
        halt = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((waiting, halt), return_when=asyncio.FIRST_COMPLETED)
            return not stop.is_set()
        finally:
            await cancel(waiting, halt)

    async def _one_run(self, stop: asyncio.Event) -> Exit | None:
        """Start the engine and watch it to its end; None if told to stop."""
        self._watch = None
        self.orders.begin_run()
        self.launch = launch = self._config.launch
        self.engine_state.change_state(State.STARTING)
        for note in launch.notes:
            log.warning("setting ignored reason=%r", note)
        try:
            self.run_now = run = self._world.spawn(launch)
        except OSError as error:
            return Exit(None, f"cannot be started: {error}", ())
        self._watch = Watch(self._config, self._world, self.engine_state, self.orders, run)
        ended = await self._until_end(run, self._watch, launch, stop)
        if ended is not None:
            self.run_now = None
        return ended

    async def _until_end(
        self, run: Run, watch: Watch, launch: Launch, stop: asyncio.Event
    ) -> Exit | None:
        end = asyncio.create_task(run.wait())
        fault = asyncio.create_task(watch.follow(launch))
        order = asyncio.create_task(watch.obey())
        halt = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((end, fault, order, halt), return_when=asyncio.FIRST_COMPLETED)
            if not (end.done() or halt.done()):
                reason = fault.result() if fault.done() else order.result()
                await cancel(fault, order)
                log.warning("engine is ended reason=%r", reason)
                self._take_out_of_service(reason)
                run.stop(self._config.timing.stop_timeout)
                await asyncio.wait((end, halt), return_when=asyncio.FIRST_COMPLETED)
            return end.result() if end.done() and not halt.done() else None
        finally:
            await cancel(end, fault, order, halt)

    def _take_out_of_service(self, reason: str) -> None:
        """Nobody is to send to an engine that is being ended: that may take it `stop_timeout`."""
        if self.engine_state.state is State.READY:
            self.engine_state.change_state(State.DRAINING, reason)
            self._world.announcer.engine_draining()
        else:
            self.engine_state.note(reason)

    async def _after(self, ended: Exit, stop: asyncio.Event) -> None:
        """Decide on what comes after a run, and wait for it."""
        self.last_exit = ended
        if self.orders.restart.is_set():
            self._policy.forget()
            self.engine_state.change_state(State.BACKOFF, ORDERED)
            self._world.announcer.engine_restarting(crashing=False)
            return
        ready_at = self._watch.ready_at if self._watch else None
        now = self._world.clock()
        planned = bool(self.launch and self.launch.ends_to_recover and ready_at is not None)
        decision = self._policy.after_exit(
            now, 0.0 if ready_at is None else now - ready_at, planned=planned
        )
        if decision.state is State.FAILED:
            self.engine_state.change_state(State.FAILED, f"{ended.describe()}; no restarts left")
            self._world.announcer.engine_gone()
            await wait_for_any(stop, self.orders.restart)
        else:
            detail = f"{ended.describe()}; next start in {decision.delay:.1f} s"
            self.engine_state.change_state(decision.state, detail)
            crashing = decision.state is State.CRASHLOOP
            self._world.announcer.engine_restarting(crashing=crashing)
            await wait_for_any(stop, self.orders.restart, within=decision.delay)
        if self.orders.restart.is_set():
            self._policy.forget()
