"""What the supervisor does with orders, with an engine, a world and a clock of the test."""

import pytest

from infinilm_babysitter.readiness import NotReady, Ready
from infinilm_babysitter.states import State
from infinilm_babysitter.supervisor import Supervisor
from rig.fake_world import FakeWorld, config, supervise, until


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


@pytest.mark.parametrize("order", ["order_drain", "order_undrain"])
def test_no_other_order_keeps_a_restart_from_waiting_for_answers(order: str) -> None:
    fake = FakeWorld()

    async def story(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.engine_state.state is State.READY)
        supervisor.orders.order_restart()
        await until(lambda: fake.said[-1] == "drains")
        getattr(supervisor.orders, order)()
        looks = fake.looks
        await until(lambda: fake.looks > looks + 2)
        assert fake.runs[0].stopped_with == []
        fake.answers_ended.set()
        await until(lambda: len(fake.runs) == 2)
        await until(lambda: supervisor.drained is (order == "order_drain"))

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
