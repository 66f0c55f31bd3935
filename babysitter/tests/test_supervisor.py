"""The supervisor's decisions, with an engine, a world and a clock of the test."""

import asyncio

import pytest

from infinilm_babysitter.liveness import Verdict
from infinilm_babysitter.readiness import Finding, Foreign, NotReady, Ready
from infinilm_babysitter.states import State
from infinilm_babysitter.supervisor import Supervisor
from rig.fake_world import MODELS, FakeWorld, config, supervise, until


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


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [(Foreign("port 1 is held by pid 7"), Verdict.OK), (Ready(MODELS), Verdict.STALLED)],
    ids=["foreign", "stalled"],
)
def test_an_engine_that_is_ended_for_a_fault_is_announced_to_be_leaving(
    finding: Finding, verdict: Verdict
) -> None:
    fake = FakeWorld(ends_when_stopped=False)

    async def story(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.engine_state.state is State.READY)
        fake.finding, fake.verdict = finding, verdict
        await until(lambda: fake.runs[0].stopped_with == [30.0])
        assert supervisor.engine_state.state is State.DRAINING
        assert fake.said[-1] == "draining"
        fake.runs[0].end(-9)
        await until(lambda: len(fake.runs) == 2)

    supervise(config(restart_when_stalled=True), fake, story)


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
