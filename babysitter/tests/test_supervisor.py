"""The supervisor's decisions, with an engine, a world and a clock of the test."""

import asyncio
from dataclasses import dataclass, field

from infinilm_babysitter.config import Config, check_config
from infinilm_babysitter.engine import Exit
from infinilm_babysitter.launch import Launch
from infinilm_babysitter.liveness import Belief, Verdict
from infinilm_babysitter.pulse import Measured
from infinilm_babysitter.readiness import Finding, Model, NotReady, Ready
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
    belief: Belief = field(default_factory=Belief)
    verdict: Verdict = Verdict.OK
    """What the next look is judged to be."""
    answers_ended: asyncio.Event = field(default_factory=asyncio.Event)
    waits_for_memory: list[str] = field(default_factory=list)

    metrics = None

    def world(self) -> World:
        return World(
            spawn=self.spawn,
            checker=self,
            take_pulse=lambda: self,
            announcer=self,
            memory=self,
            drain=self.drain,
            port_holder=lambda: "",
            clock=lambda: self.now,
        )

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
        self.runs.append(FakeRun())
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
        for finding in (NotReady("dead", refused=True), Ready(MODELS), NotReady("d", refused=True)):
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


def test_a_stall_is_announced_once_and_its_end_as_well() -> None:
    fake = FakeWorld()

    async def story(_: Supervisor) -> None:
        await until(lambda: fake.looks > 2)
        for verdict in (Verdict.BUSY, Verdict.STALLED, Verdict.BUSY, Verdict.OK):
            fake.verdict = verdict
            looks = fake.looks
            await until(lambda n=looks: fake.looks > n + 2)

    supervise(config(), fake, story)
    assert fake.said == ["ready m", "stalled", "ready m"]
    assert len(fake.runs) == 1


def test_a_drained_engine_is_neither_announced_nor_restarted_when_it_stalls() -> None:
    fake = FakeWorld()

    async def story(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.engine_state.state is State.READY)
        supervisor.orders.order_drain()
        await until(lambda: fake.said[-1] == "drains")
        fake.verdict = Verdict.STALLED
        looks = fake.looks
        await until(lambda: fake.looks > looks + 2)

    supervise(config(restart_when_stalled=True), fake, story)
    assert fake.said == ["ready m", "draining", "drains", "draining"]
    assert len(fake.runs) == 1


def test_an_ordered_restart_lets_answers_end_and_leaves_no_mark_on_the_record() -> None:
    fake = FakeWorld()

    async def story(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.engine_state.state is State.READY)
        supervisor.orders.order_restart()
        await until(lambda: fake.said[-1] == "drains")
        assert (supervisor.engine_state.state, fake.runs[0].stopped_with) == (State.DRAINING, [])
        fake.answers_ended.set()
        await until(lambda: len(fake.runs) == 2)
        await until(lambda: supervisor.engine_state.state is State.READY)
        assert supervisor.restarts == 0

    supervise(config(), fake, story)
    assert fake.said == ["ready m", "draining", "drains", "restarting", "ready m"]
    assert fake.runs[0].stopped_with == [30.0]
    assert fake.waits_for_memory == ["stopped", "backoff"]


def test_a_restart_that_is_ordered_twice_does_not_wait_for_answers() -> None:
    fake = FakeWorld()

    async def story(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.engine_state.state is State.READY)
        supervisor.orders.order_restart()
        await until(lambda: fake.said[-1] == "drains")
        supervisor.orders.order_restart()
        await until(lambda: len(fake.runs) == 2)

    supervise(config(), fake, story)


def test_a_restart_is_ordered_while_the_engine_loads_or_waits_or_has_failed() -> None:
    fake = FakeWorld(finding=NotReady("loading"))

    async def story(supervisor: Supervisor) -> None:
        await until(lambda: fake.looks > 2)
        supervisor.orders.order_restart()
        await until(lambda: len(fake.runs) == 2)
        fake.runs[1].end(1)
        await until(lambda: supervisor.engine_state.state is State.BACKOFF)
        supervisor.orders.order_restart()
        await until(lambda: len(fake.runs) == 3)
        for run in (2, 3):
            fake.runs[run].end(1)
            await until(lambda: supervisor.engine_state.state is State.BACKOFF)
            if run == 2:
                fake.now += 1  # nothing that happened before the order counts any more
                supervisor.orders.order_restart()
                await until(lambda: len(fake.runs) == 4)
        supervisor.orders.order_restart()
        await until(lambda: len(fake.runs) == 5)

    supervise(config(restart_delay=3600, max_restarts=1), fake, story)
    assert "drains" not in fake.said


def test_a_failed_engine_is_started_again_when_ordered() -> None:
    fake = FakeWorld()

    async def story(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.engine_state.state is State.READY)
        fake.runs[0].end(1)
        await until(lambda: supervisor.engine_state.state is State.FAILED)
        supervisor.orders.order_restart()
        await until(lambda: supervisor.engine_state.state is State.READY)

    supervise(config(max_restarts=0), fake, story)
    assert fake.said == ["ready m", "gone", "ready m"]


def test_a_drained_engine_stays_so_through_a_crash_until_it_is_undrained() -> None:
    fake = FakeWorld()
    fake.answers_ended.set()

    async def story(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.engine_state.state is State.READY)
        supervisor.orders.order_drain()
        await until(lambda: supervisor.drained)
        fake.runs[0].end(1)
        await until(lambda: len(fake.runs) == 2)
        await until(lambda: supervisor.drained)
        assert fake.said.count("ready m") == 1
        fake.finding = Ready(({"id": "m"}, {"id": "n"}))
        looks = fake.looks
        await until(lambda: fake.looks > looks + 2)
        supervisor.orders.order_undrain()
        await until(lambda: supervisor.engine_state.state is State.READY)
        assert not supervisor.drained

    supervise(config(), fake, story)
    assert fake.said[-1] == "ready m,n"
    assert fake.said.count("ready m") == 1


def test_an_undrain_ends_the_waiting_of_a_drain() -> None:
    fake = FakeWorld()

    async def story(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.engine_state.state is State.READY)
        supervisor.orders.order_drain()
        await until(lambda: fake.said[-1] == "drains")
        supervisor.orders.order_undrain()
        await until(lambda: supervisor.engine_state.state is State.READY)

    supervise(config(), fake, story)
    assert fake.said == ["ready m", "draining", "drains", "ready m"]


def test_a_stop_while_memory_is_waited_for_is_obeyed() -> None:
    fake = FakeWorld()

    async def story(supervisor: Supervisor) -> None:
        await until(lambda: fake.waits_for_memory != [])

    async def for_ever(_note: object) -> None:
        fake.waits_for_memory.append("")
        await asyncio.Event().wait()

    fake.wait_until_free = for_ever  # type: ignore[method-assign]
    supervise(config(), fake, story)
    assert fake.runs == []
