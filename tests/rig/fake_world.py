"""A babysitter's supervisor with an engine, a world and a clock of the test."""

import asyncio
from dataclasses import dataclass, field

from infinilm_babysitter.config import Config, check_config
from infinilm_babysitter.engine import Exit
from infinilm_babysitter.launch import Launch
from infinilm_babysitter.liveness import Belief, Verdict
from infinilm_babysitter.pulse import Measured
from infinilm_babysitter.readiness import Finding, Model, Ready
from infinilm_babysitter.states import State
from infinilm_babysitter.supervisor import Supervisor
from infinilm_babysitter.waiting import wait_for_any
from infinilm_babysitter.world import World

MODELS: tuple[Model, ...] = ({"id": "m"},)


def config(backend: dict[str, object] | None = None, **babysitter: object) -> Config:
    quick = {"probe_interval": 0.01, "models_interval": 0.01, "restart_delay": 0}
    raw = {
        "port": 1,
        "babysitter": quick | babysitter,
        "backend": backend or {"type": "mock", "models": ["m"]},
    }
    return check_config(raw, file="test")


class FakeRun:
    """Ends when the test says so, or when it is stopped."""

    pid = 1
    keeper_pid = 2

    def __init__(self, *, ends_when_stopped: bool) -> None:
        self._ends_when_stopped = ends_when_stopped
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.stopped_with: list[float] = []

    async def wait(self) -> Exit:
        return await asyncio.shield(self.ended)

    def stop(self, timeout: float) -> None:
        self.stopped_with.append(timeout)
        if self._ends_when_stopped:
            self.end(-15)

    def kill(self) -> None:
        self.end(-9)

    def end(self, code: int) -> None:
        if not self.ended.done():
            self.ended.set_result(Exit(code, "", ()))


@dataclass
class FakeWorld:
    """Everything around the supervisor; `finding` is what the next look finds."""

    finding: Finding = field(default_factory=lambda: Ready(MODELS))
    now: float = 1000.0
    runs: list[FakeRun] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    looks: int = 0
    supervisor: Supervisor | None = None
    states_at_ends: list[State] = field(default_factory=list)
    belief: Belief = field(default_factory=Belief)
    verdict: Verdict = Verdict.OK
    """What the next look is judged to be."""
    answers_ended: asyncio.Event = field(default_factory=asyncio.Event)
    waits_for_memory: list[str] = field(default_factory=list)
    ends_when_stopped: bool = True

    metrics = None

    def world(self) -> World:
        return World(
            spawn=self.spawn,
            checker=self,
            take_pulse=lambda: self,
            announcer=self,
            memory=self,
            drain=self.drain,
            port_holder=self.port_holder,
            clock=lambda: self.now,
        )

    def port_holder(self) -> str:
        return ""

    async def measure(self, _model: str) -> Measured:
        return Measured()

    def take(self, *_: object) -> Belief:
        self.belief = Belief(self.verdict)
        return self.belief

    async def note_running(self, _root: int) -> None:
        pass

    async def wait_until_free(self, _note: object) -> None:
        self.waits_for_memory.append(str(self.supervisor and self.supervisor.engine_state.state))

    async def drain(self, hurry: asyncio.Event) -> None:
        self.said.append("drains")
        await wait_for_any(hurry, self.answers_ended)

    def spawn(self, _launch: Launch) -> FakeRun:
        self.runs.append(FakeRun(ends_when_stopped=self.ends_when_stopped))
        return self.runs[-1]

    async def check(self, *_: object) -> Finding:
        self.looks += 1
        return self.finding

    def engine_ready(self, models: tuple[Model, ...]) -> None:
        self.said.append("ready " + ",".join(str(model["id"]) for model in models))

    def engine_stalled(self) -> None:
        self.said.append("stalled")

    def engine_draining(self) -> None:
        self.said.append("draining")

    def engine_restarting(self, *, crashing: bool) -> None:
        self.said.append("crashloop" if crashing else "restarting")
        if self.supervisor:
            self.states_at_ends.append(self.supervisor.engine_state.state)

    def engine_gone(self) -> None:
        self.said.append("gone")


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.001)


def supervise(settings: Config, fake: FakeWorld, story) -> Supervisor:
    """Run the supervisor while `story(supervisor)` happens to it, then stop it."""

    async def play() -> Supervisor:
        fake.supervisor = supervisor = Supervisor(settings, fake.world())
        stop = asyncio.Event()
        task = asyncio.create_task(supervisor.supervise(stop))
        try:
            await story(supervisor)
        finally:
            stop.set()
            await asyncio.wait_for(task, 5)
        return supervisor

    return asyncio.run(play())
