"""Load is counted in once and out once; only an engine's own faults count against it."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinilm_router.router.engine import FAILURE_PENALTY, Limits, Outcome
from infinilm_router.router.load import LoadBook
from infinilm_router.router.table import Service, ServiceTable

ENGINE = Service("a", "h", 1, models=("m",), metadata={"type": "openai-api"})


def book() -> LoadBook:
    return LoadBook(jitter=lambda: 0.5)


def prefill(where: LoadBook) -> tuple[int, int]:
    load = where.of(ENGINE)
    return load.prefill_requests, load.prefill_bytes


def end(where: LoadBook, outcome: Outcome, now: float = 0.0, service: Service = ENGINE) -> None:
    where.begin(service, now).release(outcome, now)


@given(st.lists(st.tuples(st.sampled_from(Outcome), st.integers(1, 3), st.booleans())))
def test_counters_are_zero_after_any_mix_of_ends(
    ends: list[tuple[Outcome, int, bool]],
) -> None:
    where = book()
    guards = [where.begin(ENGINE, float(n), 100) for n in range(len(ends))]
    assert where.in_flight == where.of(ENGINE).in_flight == len(ends)
    assert prefill(where) == (len(ends), 100 * len(ends))
    for guard, (outcome, times, first_byte) in zip(guards, ends, strict=True):
        if first_byte:
            guard.answered(
                503 if outcome is Outcome.ENGINE_FAULT else 200, None, stream=False, now=5.0
            )
            guard.first_byte(5.5)
        for _ in range(times):
            guard.release(outcome, 6.0)
    assert where.in_flight == where.of(ENGINE).in_flight == 0
    assert prefill(where) == (0, 0)
    assert where.of(ENGINE).request_count == len(ends)
    assert not where.of(ENGINE).on_probation


def test_the_last_byte_that_came_is_remembered() -> None:
    where = book()
    assert not where.heard_since("a", -1.0)
    running = where.begin(ENGINE, 1.0)
    assert not where.heard_since("a", 0.5), "a request says nothing of its answer"
    running.load.heard_at = 2.0
    assert where.heard_since("a", 1.9)
    assert not where.heard_since("a", 2.0)
    running.release(Outcome.OK, 3.0)
    assert where.heard_since("a", 1.9)


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


def test_after_a_success_an_ejection_is_the_first_again() -> None:
    where, now = ejected()
    end(where, Outcome.ENGINE_FAULT, now)
    now = where.of(ENGINE).ejected_until
    for outcome in (Outcome.OK, *[Outcome.ENGINE_FAULT] * 3):
        end(where, outcome, now)
    assert where.of(ENGINE).ejected_until == now + 5


def test_the_head_of_a_long_stream_ends_the_probation() -> None:
    where, now = ejected()
    probation = where.begin(ENGINE, now)
    probation.answered(200, None, stream=False, now=now)
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
    where.follow(ServiceTable((ENGINE,)), ServiceTable(), 0.0)
    assert where.of(ENGINE).in_flight == 1
    guard.release(Outcome.OK, 0.0)
    where.follow(ServiceTable(), ServiceTable(), 0.0)
    assert where.of(ENGINE).request_count == 0


def test_a_prompt_counts_until_the_first_byte_of_its_answer() -> None:
    where = book()
    stream, refused, left = (where.begin(ENGINE, 0.0, size) for size in (1000, 200, 30))
    assert prefill(where) == (3, 1230)
    stream.answered(200, None, stream=True, now=1.0)  # a stream's head says nothing of its prompt
    assert prefill(where) == (3, 1230)
    stream.first_byte(2.0)
    refused.answered(400, None, stream=False, now=2.0)
    assert prefill(where) == (1, 30)
    for guard in (stream, refused, left):
        guard.release(Outcome.NEUTRAL, 3.0)
    assert prefill(where) == (0, 0)


def serve(where: LoadBook, seconds: float, end: float, service: Service = ENGINE) -> None:
    """A request whose first byte comes after `seconds`, at time `end`."""
    guard = where.begin(service, end - seconds)
    guard.answered(200, None, stream=False, now=end)
    guard.first_byte(end)
    guard.release(Outcome.OK, end)


def test_a_slow_answer_counts_at_once_and_fast_ones_by_and_by() -> None:
    where, load = book(), book().of(ENGINE)
    load = where.of(ENGINE)
    serve(where, 0.1, 0.0)
    serve(where, 1.0, 1.0)
    assert load.latency(1.0) == 1.0
    serve(where, 0.1, 11.0)  # ten seconds later, 1/e of the old is left
    assert load.latency(11.0) == pytest.approx(0.1 + 0.9 / math.e)
    for tenth in range(100):
        serve(where, 0.1, 11 + tenth / 10)
    assert load.latency(21.0) == pytest.approx(0.1 + 0.9 / math.e**2, rel=0.1)


def test_an_estimate_fades_while_nothing_is_heard() -> None:
    where = book()
    serve(where, 2.0, 0.0)
    assert where.of(ENGINE).latency(10.0) == pytest.approx(2 / math.e)


@pytest.mark.parametrize("status", [500, 502, 503, None])
def test_failing_fast_does_not_look_fast(status: int | None) -> None:
    where = book()
    serve(where, 0.5, 0.0)
    guard = where.begin(ENGINE, 1.0)
    if status:
        guard.answered(status, None, stream=False, now=1.001)
    guard.release(Outcome.OK if status == 500 else Outcome.ENGINE_FAULT, 1.001)
    assert where.of(ENGINE).latency(1.001) == FAILURE_PENALTY


def test_a_refusal_says_nothing_of_the_time_that_an_answer_takes() -> None:
    where = book()
    serve(where, 0.5, 0.0)
    guard = where.begin(ENGINE, 0.0)
    guard.answered(400, None, stream=False, now=0.001)
    guard.release(Outcome.OK, 0.001)
    assert where.of(ENGINE).estimate == 0.5


@pytest.mark.parametrize(
    ("status", "retry_after", "pause"),
    [(429, None, 1), (429, 20.0, 20), (429, 9999.0, 300), (503, 7.0, 7), (429, 0.0, 0)],
)
def test_an_engine_that_is_busy_is_spared_and_not_blamed(
    status: int, retry_after: float | None, pause: float
) -> None:
    where = book()
    for _ in range(10):
        guard = where.begin(ENGINE, 5.0)
        outcome = guard.answered(status, retry_after, stream=False, now=5.0)
        assert outcome is Outcome.BUSY
        guard.release(outcome, 5.0)
    load = where.of(ENGINE)
    assert (load.error_count, load.consecutive_failures, where.any_ejected) == (0, 0, False)
    assert load.busy_until == 5 + pause
    assert [load.is_busy(when) for when in (5.0, 5 + pause)] == [pause > 0, False]
    assert where.uneven_until == 5 + pause


def test_503_without_retry_after_stays_a_fault() -> None:
    guard = book().begin(ENGINE, 0.0)
    assert guard.answered(503, None, stream=False, now=0.0) is Outcome.ENGINE_FAULT


def test_a_pause_is_not_made_shorter_by_a_later_answer() -> None:
    where = book()
    for retry_after in (60.0, 1.0):
        where.begin(ENGINE, 0.0).answered(429, retry_after, stream=False, now=0.0)
    assert where.of(ENGINE).busy_until == 60


def test_a_probation_request_that_meets_a_busy_engine_decides_nothing() -> None:
    where, now = ejected()
    probation = where.begin(ENGINE, now)
    probation.release(probation.answered(429, None, stream=False, now=now), now)
    load = where.of(ENGINE)
    assert (bool(load.ejected_until), load.is_ejected(now)) == (True, False)


def test_an_engine_that_heals_or_comes_beside_others_begins_slowly() -> None:
    where, now = ejected()
    end(where, Outcome.OK, now)
    load = where.of(ENGINE)
    assert [load.warmth(now + age, 10.0) for age in (0, 5, 10, 99)] == [0, 0.5, 1, 1]
    other = replace(ENGINE, name="b")
    where.follow(ServiceTable((ENGINE,)), ServiceTable((ENGINE, other)), 50.0)
    assert (where.of(other).warmth(52.0, 10.0), where.uneven_until) == (0.2, 60.0)


def test_engines_that_come_together_or_alone_begin_at_once() -> None:
    other, elsewhere = replace(ENGINE, name="b"), replace(ENGINE, name="c", models=("n",))
    both = ServiceTable((ENGINE, other))
    one_down = replace(both, down=frozenset("b"))
    for last, new, warming in [
        (ServiceTable(), both, ""),  # the router has just started
        (ServiceTable((ENGINE,)), ServiceTable((ENGINE, elsewhere)), ""),  # nobody serves "n"
        (one_down, both, "b"),
        (both, one_down, ""),
        (ServiceTable((ENGINE, replace(other, models=()))), both, "b"),  # its models are learned
        (both, ServiceTable((ENGINE, other, replace(other, name="d"))), "d"),
    ]:
        where = book()
        where.follow(last, new, 5.0)
        assert [s.name for s in new.services if where.of(s).warmth(5.0, 10.0) < 1] == [*warming]


def test_limits_of_metadata_win_if_they_can_be_used() -> None:
    where = LoadBook(Limits(max_concurrency=9))
    for value, limit in [(4, 4), (0, 9), (-1, 9), ("4", 9), (True, 9), (4.0, 9), (None, 9)]:
        service = replace(ENGINE, name=repr(value), metadata={"max_concurrency": value})
        assert where.of(service).limit == limit
