"""The verdict on an engine, from looks at it."""

import pytest

from infinilm_babysitter.liveness import Belief, Load, Look, Verdict, judge

STALLED_AFTER = 120.0
WORK = Load(running=2, waiting=1, progress=(10.0, 20.0))
IDLE = Load(running=0, waiting=0, progress=(10.0, 20.0))


def working(tokens: float) -> Load:
    return Load(running=2, waiting=1, progress=(10.0, tokens))


def at(seconds: float, **facts: object) -> Look:
    return Look(at=seconds, **({"load": WORK, "clients": 3} | facts))


def verdict(*looks: Look) -> Verdict:
    belief = Belief()
    for look in looks:
        belief = judge(belief, look, STALLED_AFTER)
    return belief.verdict


def test_an_engine_without_work_is_ok_for_ever() -> None:
    looks = [at(10.0 * n, load=IDLE) for n in range(100)]
    assert verdict(*looks) is Verdict.OK


def test_work_whose_tokens_move_is_busy_for_ever() -> None:
    looks = [at(10.0 * n, load=working(n)) for n in range(100)]
    assert verdict(*looks) is Verdict.BUSY


@pytest.mark.parametrize(
    "work", [Load(running=1, waiting=0, progress=(5,)), Load(running=0, waiting=1, progress=(5,))]
)
def test_work_that_runs_or_waits_without_a_token_is_stalled_after_the_time(work: Load) -> None:
    assert verdict(at(0, load=work), at(119.9, load=work)) is Verdict.BUSY
    assert verdict(at(0, load=work), at(120, load=work)) is Verdict.STALLED


def test_the_time_counts_from_the_last_token() -> None:
    looks = [at(0), at(100, load=working(21)), at(219, load=working(21))]
    assert verdict(*looks) is Verdict.BUSY
    assert verdict(*looks, at(220, load=working(21))) is Verdict.STALLED


def test_the_time_counts_from_the_arrival_of_work() -> None:
    assert verdict(at(0, load=IDLE), at(500, load=IDLE), at(510)) is Verdict.BUSY


def test_any_counter_that_moves_is_progress() -> None:
    prompt_moves = Load(running=1, waiting=0, progress=(11.0, 20.0))
    assert verdict(at(0), at(120, load=prompt_moves)) is Verdict.BUSY


def test_a_stalled_engine_comes_back_when_a_token_moves() -> None:
    assert verdict(at(0), at(120), at(130, load=working(21))) is Verdict.BUSY


def test_a_stalled_engine_comes_back_when_its_work_is_gone() -> None:
    assert verdict(at(0), at(120), at(130, load=IDLE)) is Verdict.OK


def test_a_stalled_engine_stays_so_when_its_clients_leave_it() -> None:
    looks = [at(120.0 + 10 * n, clients=0) for n in range(1, 50)]
    assert verdict(at(0), at(120), *looks) is Verdict.STALLED


def test_a_stalled_engine_that_cannot_be_tested_gets_a_trial_once_its_clients_have_left() -> None:
    stalled = (at(0), at(120))
    assert verdict(*stalled, at(130, untestable=True)) is Verdict.STALLED
    assert verdict(*stalled, at(130, untestable=True, clients=0)) is Verdict.OK
    trial = (at(130, untestable=True, clients=0), at(140), at(249))
    assert verdict(*stalled, *trial) is Verdict.BUSY
    assert verdict(*stalled, *trial, at(250)) is Verdict.STALLED


def test_work_of_nobody_is_a_gauge_that_was_left_standing() -> None:
    looks = [at(10.0 * n, clients=0) for n in range(100)]
    assert verdict(*looks) is Verdict.OK
    assert verdict(*looks, at(1000), at(1109)) is Verdict.BUSY, "the time began with the client"


def test_an_engine_without_metrics_is_never_stalled() -> None:
    looks = [at(10.0 * n, load=None, answered=False) for n in range(100)]
    assert verdict(*looks) is Verdict.BUSY
    assert verdict(*looks, at(1000, load=None)) is Verdict.OK


def test_a_slow_answer_is_busy_and_not_dead() -> None:
    assert verdict(at(0, load=IDLE, answered=False)) is Verdict.BUSY
    assert verdict(at(0, load=working(1), answered=False)) is Verdict.BUSY


def test_metrics_that_have_to_come_and_do_not_are_a_stall_after_the_time() -> None:
    silent = {"load": None, "hangs": True, "answered": False}
    assert verdict(at(0, load=IDLE), at(119, **silent)) is Verdict.BUSY
    assert verdict(at(0, load=IDLE), at(119, **silent), at(120, **silent)) is Verdict.STALLED


def test_one_late_answer_proves_nothing_however_late_it_is() -> None:
    silent = {"load": None, "hangs": True, "answered": False}
    assert verdict(at(0, load=IDLE), at(500, **silent)) is Verdict.BUSY
    assert verdict(at(0, load=IDLE), at(500, **silent), at(501, **silent)) is Verdict.STALLED


def test_metrics_that_come_in_between_show_whether_tokens_have_moved() -> None:
    silent = {"load": None, "hangs": True, "answered": False}
    looks = (at(0), at(60, **silent), at(110, load=working(21)), at(229, **silent))
    assert verdict(*looks) is Verdict.BUSY


def test_a_stalled_engine_that_no_longer_shows_metrics_stays_stalled() -> None:
    assert verdict(at(0), at(120), at(130, load=None)) is Verdict.STALLED
    assert verdict(at(0), at(120), at(130, load=None, hangs=True)) is Verdict.STALLED


def test_refused_is_dead_at_once_and_comes_back() -> None:
    assert verdict(at(0), at(10, load=None, refused=True)) is Verdict.DEAD
    assert verdict(at(0), at(10, load=None, refused=True), at(20)) is Verdict.BUSY


def test_one_503_of_its_health_call_is_not_death_two_are() -> None:
    sick = {"load": None, "unavailable": True}
    assert verdict(at(0), at(10, **sick)) is not Verdict.DEAD
    assert verdict(at(0), at(10, **sick), at(20, **sick)) is Verdict.DEAD
    assert verdict(at(0), at(10, **sick), at(20), at(30, **sick)) is not Verdict.DEAD
