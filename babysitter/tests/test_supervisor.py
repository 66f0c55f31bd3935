"""The supervisor's decisions, with an engine, a world and a clock of the test."""

import asyncio
from dataclasses import dataclass, field

from infinilm_babysitter.config import Config, check_config
from infinilm_babysitter.engine import Exit
from infinilm_babysitter.launch import Launch
from infinilm_babysitter.readiness import Finding, Model, NotReady, Ready
from infinilm_babysitter.states import State
from infinilm_babysitter.supervisor import Supervisor, World

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

    def __init__(self) -> None:
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.stopped_with: list[float] = []

    async def wait(self) -> Exit:
        return await asyncio.shield(self.ended)

    def stop(self, timeout: float) -> None:
        self.stopped_with.append(timeout)
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

    def world(self) -> World:
        return World(self.spawn, self, self, lambda: "", lambda: self.now)

    def spawn(self, _launch: Launch) -> FakeRun:
        self.runs.append(FakeRun())
        return self.runs[-1]

    async def check(self, *_: object) -> Finding:
        self.looks += 1
        return self.finding

    def engine_ready(self, models: tuple[Model, ...]) -> None:
        self.said.append("ready " + ",".join(str(model["id"]) for model in models))

    def engine_restarting(self) -> None:
        self.said.append("restarting")
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


def test_a_ready_engine_is_announced_once_and_left_running_at_the_end() -> None:
    fake = FakeWorld()

    async def story(supervisor: Supervisor) -> None:
        await until(lambda: fake.looks > 5)

    supervisor = supervise(config(), fake, story)
    assert fake.said == ["ready m"]
    assert supervisor.engine_state.state is State.READY
    assert supervisor.run_now is fake.runs[0]
    assert not fake.runs[0].ended.done()


def test_r24_an_engine_over_its_time_to_start_is_stopped_and_never_announced() -> None:
    fake = FakeWorld(finding=NotReady("loading"))

    async def story(_: Supervisor) -> None:
        await until(lambda: fake.looks > 3)
        assert fake.runs[0].stopped_with == []
        fake.now += 600
        await until(lambda: len(fake.runs) == 2)

    supervise(config(), fake, story)
    assert fake.runs[0].stopped_with == [30.0]
    assert fake.said == ["restarting"]


def test_a_broken_engine_gets_its_time_to_recover() -> None:
    fake = FakeWorld()

    async def story(supervisor: Supervisor) -> None:
        async def looks(count: int) -> None:
            seen = fake.looks
            await until(lambda: fake.looks >= seen + count)

        await until(lambda: supervisor.engine_state.state is State.READY)
        for finding in (NotReady("dead", broken=True), Ready(MODELS), NotReady("d", broken=True)):
            fake.finding = finding
            await looks(2)
            fake.now += 29
            await looks(2)
        assert len(fake.runs) == 1
        fake.now += 1
        await until(lambda: len(fake.runs) == 2)

    supervise(config(), fake, story)


def test_an_engine_that_ends_to_recover_is_no_crash_loop() -> None:
    backend = {"type": "infinilm", "model_path": "/m", "generation": "launch_server"}
    fake = FakeWorld()

    async def story(supervisor: Supervisor) -> None:
        for count in range(1, 9):
            await until(lambda n=count: len(fake.runs) == n)
            await until(lambda: supervisor.engine_state.state is State.READY)
            fake.runs[-1].end(-9)

    supervise(config(backend), fake, story)
    assert fake.states_at_ends[:7] == [State.BACKOFF] * 7


def test_a_failed_engine_is_withdrawn() -> None:
    fake = FakeWorld()

    async def story(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.engine_state.state is State.READY)
        fake.runs[0].end(1)
        await until(lambda: supervisor.engine_state.state is State.FAILED)

    supervise(config(max_restarts=0), fake, story)
    assert fake.said == ["ready m", "gone"]
    assert len(fake.runs) == 1
