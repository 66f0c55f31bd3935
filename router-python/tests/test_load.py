"""Load is counted in once and out once; only an engine's own faults count against it."""

from hypothesis import given
from hypothesis import strategies as st

from infinilm_router.router.load import LoadBook, Outcome, RetryBudget
from infinilm_router.router.table import Service

ENGINE = Service("a", "h", 1, models=("m",), metadata={"type": "openai-api"})


def book(max_fails: int = 3) -> LoadBook:
    return LoadBook(max_fails, jitter=lambda: 0.5)


def end(where: LoadBook, outcome: Outcome, now: float = 0.0, service: Service = ENGINE) -> None:
    where.begin(service, now).release(outcome, now)


@given(st.lists(st.tuples(st.sampled_from(Outcome), st.integers(1, 3), st.booleans())))
def test_in_flight_is_zero_after_any_mix_of_ends(
    ends: list[tuple[Outcome, int, bool]],
) -> None:
    where = book()
    guards = [where.begin(ENGINE, float(n)) for n in range(len(ends))]
    assert where.in_flight == where.of(ENGINE).in_flight == len(ends)
    for guard, (outcome, times, first_byte) in zip(guards, ends, strict=True):
        if first_byte:
            guard.first_byte(outcome, 5.0)
        for _ in range(times):
            guard.release(outcome, 6.0)
    assert where.in_flight == where.of(ENGINE).in_flight == 0
    assert where.of(ENGINE).request_count == len(ends)
    assert not where.of(ENGINE).on_probation


def test_three_faults_in_a_row_eject_and_the_time_doubles_up_to_a_minute() -> None:
    where, load, now = book(), book().of(ENGINE), 0.0
    load = where.of(ENGINE)
    for _ in range(3):
        assert not load.is_ejected(now)
        end(where, Outcome.ENGINE_FAULT, now)
    spans = []
    for _ in range(6):
        spans.append(load.ejected_until - now)
        assert load.is_ejected(now)
        now = load.ejected_until
        assert not load.is_ejected(now)
        end(where, Outcome.ENGINE_FAULT, now)
    assert spans == [5, 10, 20, 40, 60, 60]


def test_ejections_of_long_ago_are_forgotten() -> None:
    where, ended = ejected()
    for later, span in ((ended + 1, 10), (ended + 700, 5)):
        end(where, Outcome.ENGINE_FAULT, later)
        assert where.of(ENGINE).ejected_until == later + span


def test_success_between_faults_starts_the_count_again() -> None:
    where = book()
    for outcome in [Outcome.ENGINE_FAULT, Outcome.ENGINE_FAULT, Outcome.OK] * 5:
        end(where, outcome)
    assert not where.of(ENGINE).is_ejected(0.0)
    assert where.of(ENGINE).error_count == 10


def test_what_is_not_the_engines_fault_changes_nothing() -> None:
    where = book()
    for _ in range(200):
        end(where, Outcome.NEUTRAL)
    assert where.of(ENGINE).error_count == 0
    assert not where.any_ejected


def ejected() -> tuple[LoadBook, float]:
    where = book()
    for _ in range(3):
        end(where, Outcome.ENGINE_FAULT)
    return where, where.of(ENGINE).ejected_until


def test_exactly_one_request_is_let_through_after_an_ejection() -> None:
    where, now = ejected()
    load = where.of(ENGINE)
    probation = where.begin(ENGINE, now)
    assert load.is_ejected(now)
    probation.release(Outcome.OK, now)
    assert not load.is_ejected(now)
    assert not where.any_ejected


def test_the_head_of_a_long_stream_ends_the_probation() -> None:
    where, now = ejected()
    probation = where.begin(ENGINE, now)
    probation.first_byte(Outcome.OK, now)
    assert not where.of(ENGINE).is_ejected(now)
    probation.release(Outcome.OK, now)


def test_a_probation_request_whose_client_leaves_says_nothing() -> None:
    where, now = ejected()
    where.begin(ENGINE, now).release(Outcome.NEUTRAL, now)
    load = where.of(ENGINE)
    assert load.ejected_until
    assert not load.is_ejected(now)


def test_answers_to_older_requests_do_not_end_an_ejection() -> None:
    where = book()
    old = where.begin(ENGINE, 0.0)
    for _ in range(3):
        end(where, Outcome.ENGINE_FAULT)
    old.release(Outcome.OK, 1.0)
    assert where.of(ENGINE).is_ejected(1.0)


def test_a_service_may_set_its_own_limits() -> None:
    strict = Service("s", "h", 1, max_fails=1, fail_timeout=30.0)
    never = Service("n", "h", 1, max_fails=0)
    where = book()
    end(where, Outcome.ENGINE_FAULT, service=strict)
    assert where.of(strict).ejected_until == 30.0
    for _ in range(20):
        end(where, Outcome.ENGINE_FAULT, service=never)
    assert not where.of(never).is_ejected(0.0)


def test_counters_of_engines_that_are_gone_are_dropped_once_idle() -> None:
    where = book()
    guard = where.begin(ENGINE, 0.0)
    where.forget_missing([])
    assert where.of(ENGINE).in_flight == 1
    guard.release(Outcome.OK, 0.0)
    where.forget_missing([])
    assert where.of(ENGINE).request_count == 0


def test_retries_are_a_fifth_of_the_requests_or_three_a_second() -> None:
    budget = RetryBudget()
    assert sum(budget.take(0.0) for _ in range(100)) == 30
    budget.requests += 1000
    assert sum(budget.take(1.0) for _ in range(1000)) == 170
    assert sum(budget.take(40.0) for _ in range(100)) == 30
