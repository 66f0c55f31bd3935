"""Waiting for an engine: in order, within the limits, and never past an engine's own."""

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infinilm_router.router.engine import Limits, Outcome
from infinilm_router.router.load import InFlight, LoadBook
from infinilm_router.router.pace import Pace
from infinilm_router.router.queue import (
    Answer,
    Place,
    RoomLimits,
    Ticket,
    WaitingRoom,
)
from infinilm_router.router.selection import Request
from infinilm_router.router.table import Service, TableStore
from infinilm_router.utils.errors import Code, RouterError


def engine(name: str, models: str = "m", limit: int = 1) -> Service:
    metadata = {"type": "openai-api", "max_concurrency": limit}
    return Service(name, "h", 1, models=tuple(models), metadata=metadata)


class Waiter:
    """A request that notes what it is told."""

    def __init__(self, model: str | None = "m", size: int = 10, tried: tuple[str, ...] = ()):
        self.request = Request()
        self.request.model, self.request.tried = model, tried
        self.size = size
        self.answers: list[Answer] = []

    def told(self, answer: Answer) -> None:
        self.answers.append(answer)

    @property
    def place(self) -> Place:
        assert len(self.answers) == 1
        assert isinstance(self.answers[0], tuple)
        return self.answers[0]


class House:
    """A waiting room with its engines, at a time that the test moves."""

    def __init__(self, *services: Service, limits: RoomLimits | None = None) -> None:
        self.now = 0.0
        self.book = LoadBook(jitter=lambda: 0.5)
        self.store = TableStore(on_change=lambda a, b: self.book.follow(a, b, self.now))
        self.store.set_services(services)
        self.room = WaitingRoom(self.store, self.book, limits=limits or RoomLimits())

    def enter(self, waiter: Waiter | None = None) -> Waiter:
        """A request that has to wait."""
        waiter = waiter or Waiter()
        assert isinstance(self.ask(waiter), Ticket)
        return waiter

    def ask(self, waiter: Waiter) -> Place | Ticket | None:
        return self.room.ask(waiter, self.now)

    def take(self, model: str | None = "m") -> InFlight:
        """A request that gets a place at once."""
        place = self.ask(Waiter(model))
        assert isinstance(place, tuple)
        return place[1]

    def free(self, place: InFlight, outcome: Outcome = Outcome.OK) -> None:
        place.release(outcome, self.now)

    def refusal(self, waiter: Waiter) -> RouterError:
        with pytest.raises(RouterError) as caught:
            self.ask(waiter)
        return caught.value


def test_a_full_engine_makes_requests_wait_and_serves_them_in_their_order() -> None:
    house = House(engine("a", limit=2))
    running = deque([house.take(), house.take()])
    waiting = [house.enter() for _ in range(5)]
    assert house.room.lengths() == [("m", 5)]
    for waiter in waiting:
        house.free(running.popleft())
        assert house.book.in_flight == 2
        running.append(waiter.place[1])
    assert house.room.lengths() == []
    assert house.book.waiting == 0


def test_who_comes_later_does_not_overtake() -> None:
    house = House(engine("a"))
    running = house.take()
    first = house.enter()
    house.store.set_services([engine("a"), engine("b")])  # room, which the first has yet to see
    second = house.enter()
    house.room.look_again(house.now)
    assert first.place[0].service.name == "b"
    house.free(running)
    assert second.place[0].service.name == "a"


def test_an_engine_of_several_models_serves_who_has_waited_longest() -> None:
    house = House(engine("a", "mn"), engine("b", "n"))
    running, other = house.take("m"), house.take("n")
    late = [house.enter(Waiter(model)) for model in ("n", "m", "n", "m")]
    order = []
    for _ in late:
        house.free(running)
        running = next(w for w in late if w.answers and w not in order).place[1]
        order.append(next(w for w in late if w.answers and w not in order))
    assert order == late
    house.free(other)


def test_one_models_burst_does_not_hold_up_another() -> None:
    house = House(engine("a", "m"), engine("b", "n"))
    house.take("m")
    for _ in range(100):
        house.enter()
    assert isinstance(house.ask(Waiter("n")), tuple)


def test_what_names_no_model_waits_for_any_engine() -> None:
    house = House(engine("a", "m"), engine("b", "n"))
    house.take("m")
    running = house.take("n")
    anybody = house.enter(Waiter(None))
    house.free(running)
    assert anybody.place[0].service.name == "b"


def test_a_retry_waits_for_an_engine_that_it_has_not_tried() -> None:
    house = House(engine("a"), engine("b"))
    first, second = house.take(), house.take()  # at a, at b
    retry = house.enter(Waiter(tried=("a",)))
    fresh = house.enter()
    house.free(first)  # no use to the retry, which is first in line
    assert (retry.answers, fresh.place[0].service.name) == ([], "a")
    house.free(second)
    assert retry.place[0].service.name == "b"


def test_a_retry_that_has_tried_all_is_told_so() -> None:
    house = House(engine("a"), engine("b"))
    house.take()
    house.take()
    retry = house.enter(Waiter(tried=("a",)))
    assert house.ask(Waiter(tried=("a", "b"))) is None
    house.store.set_services([engine("a")])
    house.room.look_again(0.0)
    assert retry.answers == [None]


def test_the_queue_is_bounded_by_requests_and_by_bytes() -> None:
    house = House(engine("a"), engine("n", "n"), limits=RoomLimits(3, 30.0, bytes=100))
    house.take()
    house.take("n")
    for _ in range(3):
        house.enter()
    refused = house.refusal(Waiter())
    assert (refused.code, refused.http_status) == (Code.OVERLOADED, 429)
    assert refused.message == (
        "All engines of model 'm' are busy: 3 requests wait already; try again in 30 s"
    )
    house.enter(Waiter("n", size=70))
    assert house.refusal(Waiter("n", size=1)).code is Code.OVERLOADED


def test_who_leaves_makes_room_and_is_not_served() -> None:
    house = House(engine("a"), limits=RoomLimits(2, 30.0, bytes=20))
    running = house.take()
    gone, stays = Waiter(), Waiter()
    ticket = house.ask(gone)
    house.enter(stays)
    assert isinstance(ticket, Ticket)
    house.room.leave(ticket)
    house.room.leave(ticket)  # twice is once
    assert house.book.waiting == 1
    house.enter()
    house.free(running)
    assert gone.answers == []
    assert stays.place


def test_retry_after_is_the_time_that_the_queue_takes_to_drain() -> None:
    house = House(engine("a"), limits=RoomLimits(8, 30.0))
    running = house.take()
    waiting = deque(house.enter() for _ in range(8))
    assert house.refusal(Waiter()).retry_after == 30  # nothing measured: who waits is gone by then
    for _ in range(4):  # two a second
        house.now += 0.5
        house.free(running)
        running = waiting.popleft().place[1]
        waiting.append(house.enter())
    refused = house.refusal(Waiter())
    assert refused.retry_after == 5  # nine at two a second
    assert (b"retry-after", b"5") in refused.headers()


@pytest.mark.parametrize(("places", "seconds", "told"), [(400, 1.0, 1), (2, 9.0, 30)])
def test_retry_after_stays_in_its_bounds(places: int, seconds: float, told: int) -> None:
    house = House(engine("a"), limits=RoomLimits(8, 30.0))
    running = house.take()
    waiting = deque(house.enter() for _ in range(8))
    for _ in range(places):
        house.now += seconds / places
        house.free(running)
        running = waiting.popleft().place[1]
        waiting.append(house.enter())
    assert house.refusal(Waiter()).retry_after == told


def test_who_has_waited_too_long_is_told_when_to_come_again() -> None:
    house = House(engine("a"), limits=RoomLimits(timeout=5.0))
    house.take()
    ticket = house.ask(Waiter())
    assert isinstance(ticket, Ticket)
    answer = house.room.late(ticket, 5.0)
    assert isinstance(answer, RouterError)
    assert (answer.code, answer.http_status) == (Code.QUEUE_TIMEOUT, 503)
    assert answer.message.startswith("All engines of model 'm' are busy: none had room within 5 s")
    assert answer.retry_after == 5
    assert house.book.waiting == 0


def test_who_has_waited_too_long_for_a_model_that_has_just_gone_leaves_the_queue() -> None:
    house = House(engine("a"))
    house.take()
    ticket = house.ask(Waiter())
    assert isinstance(ticket, Ticket)
    house.store.set_services([])
    answer = house.room.late(ticket, 30.0)
    assert isinstance(answer, RouterError)
    assert answer.code is Code.QUEUE_TIMEOUT
    assert house.book.waiting == 0


def say_busy(house: House, place: InFlight, seconds: float) -> None:
    assert place.answered(429, seconds, stream=False, now=house.now) is Outcome.BUSY
    house.free(place, Outcome.BUSY)


def test_an_engine_that_asks_for_a_pause_is_a_last_choice() -> None:
    house = House(engine("a", limit=2), engine("b"), limits=RoomLimits(1, 30.0))
    say_busy(house, house.take(), 60)
    house.take()  # b
    ticket = house.ask(Waiter())
    assert isinstance(ticket, Ticket)  # rather wait for b
    place = house.ask(Waiter())  # no room to wait in: a, after all
    assert isinstance(place, tuple)
    assert place[0].service.name == "a"
    late = house.room.late(ticket, 30.0)
    assert isinstance(late, tuple)
    assert late[0].service.name == "a"


def test_engines_that_come_serve_who_waits_and_a_model_that_goes_ends_the_wait() -> None:
    house = House(engine("a"))
    house.take()
    first, second = house.enter(), house.enter()
    house.store.set_services([engine("a"), engine("b")])
    house.room.look_again(1.0)
    assert first.place[0].service.name == "b"
    house.store.set_services([])
    house.room.look_again(2.0)
    assert isinstance(second.answers[0], RouterError)
    assert second.answers[0].code is Code.NO_HEALTHY_ENGINE


def test_a_limit_that_is_raised_serves_who_waits_and_one_that_is_lowered_holds() -> None:
    plain = replace(engine("a"), metadata={"type": "openai-api"})
    house = House(plain)
    house.book.configure(Limits(max_concurrency=1), house.store.current)
    running = [house.take()]
    waiting = [house.enter() for _ in range(4)]
    house.book.configure(Limits(max_concurrency=3), house.store.current)
    house.room.look_again(0.0)
    running += [waiter.place[1] for waiter in waiting[:2]]
    house.book.configure(Limits(max_concurrency=2), house.store.current)
    house.free(running.pop())
    assert not waiting[2].answers  # still two
    house.free(running.pop())
    assert waiting[2].place


def test_the_end_of_an_ejection_is_seen_by_looking_again() -> None:
    house = House(engine("a"), engine("b"), limits=RoomLimits())
    house.book.configure(Limits(max_fails=1), house.store.current)
    house.free(house.take(), Outcome.ENGINE_FAULT)
    house.take()
    waiter = house.enter()
    house.room.look_again(4.9)
    assert not waiter.answers
    house.room.look_again(5.1)
    assert waiter.place[0].service.name == "a"


def test_the_pace_forgets_what_is_long_ago() -> None:
    pace = Pace(0.0)
    assert pace.rate(1.0) == 0
    for tenth in range(100):
        pace.count(tenth / 10)
    assert pace.rate(10.0) == pytest.approx(10)
    assert pace.rate(15.0) == pytest.approx(100 / 15)
    assert pace.rate(40.0) == 0


TABLES = [
    [engine("a", "mn", 2), engine("b", "m", 1)],
    [engine("a", "mn", 1), engine("c", "n", 3)],
    [engine("b", "n", 1), engine("a", "m", 2)],
]
MOST = {"a": 2, "b": 1, "c": 3}
ANY = st.integers(0, 99)


class Storm(RuleBasedStateMachine):
    """Whatever happens, limits hold and nobody is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House(*TABLES[0], limits=RoomLimits(4, 30.0, 1000))
        self.running: list[InFlight] = []
        self.waiting: dict[Waiter, Ticket] = {}

    @rule(model=st.sampled_from(["m", "n", None]))
    def ask(self, model: str | None) -> None:
        waiter = Waiter(model)
        try:
            found = self.house.ask(waiter)
        except RouterError as error:
            assert error.code is Code.OVERLOADED  # noqa: PT017 - one of two ends
            return
        if isinstance(found, Ticket):
            self.waiting[waiter] = found
        else:
            assert found
            self.running.append(found[1])

    @precondition(lambda self: self.running)
    @rule(number=ANY, outcome=st.sampled_from(Outcome))
    def free(self, number: int, outcome: Outcome) -> None:
        self.house.free(self.running.pop(number % len(self.running)), outcome)
        self.hear()

    @precondition(lambda self: self.waiting)
    @rule(number=ANY, late=st.booleans())
    def leave(self, number: int, *, late: bool) -> None:
        ticket = self.waiting.pop(list(self.waiting)[number % len(self.waiting)])
        if not late:
            self.house.room.leave(ticket)
        elif isinstance(answer := self.house.room.late(ticket, self.house.now), tuple):
            self.running.append(answer[1])

    @rule(services=st.sampled_from(TABLES), seconds=st.sampled_from([0, 1, 100]))
    def change(self, services: list[Service], seconds: int) -> None:
        self.house.now += seconds
        self.house.store.set_services(services)
        self.house.room.look_again(self.house.now)
        self.hear()

    def hear(self) -> None:
        for waiter in [waiter for waiter in self.waiting if waiter.answers]:
            del self.waiting[waiter]
            self.running.append(waiter.place[1])

    @invariant()
    def limits_hold(self) -> None:
        loads = {s.name: self.house.book.of(s) for services in TABLES for s in services}
        assert all(loads[name].in_flight <= most for name, most in MOST.items())
        assert sum(load.in_flight for load in loads.values()) == len(self.running)
        assert self.house.book.in_flight == len(self.running)
        assert self.house.book.full == sum(load.is_full() for load in loads.values())

    @invariant()
    def nobody_is_lost(self) -> None:
        assert self.house.book.waiting == len(self.waiting)
        assert sum(length for _, length in self.house.room.lengths()) == len(self.waiting)

    def teardown(self) -> None:
        while self.running:
            self.free(0, Outcome.OK)
        assert not self.waiting
        assert (self.house.book.in_flight, self.house.book.waiting) == (0, 0)


TestStorm = Storm.TestCase
