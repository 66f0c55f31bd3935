"""R23: the delays and states after ends, on a clock of the test."""

import random

from infinilm_babysitter.restarts import RestartPolicy, RestartRules
from infinilm_babysitter.states import State


def exact(_low: float, _high: float) -> float:
    return 1.0


def delays(policy: RestartPolicy, count: int, *, apart: float) -> list[float]:
    return [policy.after_exit(n * apart, 0.0).delay for n in range(count)]


def test_r23_delays_double_up_to_the_longest() -> None:
    policy = RestartPolicy(RestartRules(), vary=exact)
    assert delays(policy, 9, apart=1000) == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_r23_delays_begin_with_the_configured_one() -> None:
    policy = RestartPolicy(RestartRules(first_delay=5), vary=exact)
    assert delays(policy, 5, apart=1000) == [5, 10, 20, 40, 60]


def test_r23_delays_vary_by_a_fifth_at_most() -> None:
    found = []
    for seed in range(500):
        policy = RestartPolicy(RestartRules(first_delay=10), random.Random(seed).uniform)
        found.append(policy.after_exit(0.0, 0.0).delay)
    assert all(8 <= delay <= 12 for delay in found)
    assert max(found) - min(found) > 3.5


def test_r23_the_fifth_end_within_the_window_is_a_crash_loop() -> None:
    policy = RestartPolicy(RestartRules())
    states = [policy.after_exit(100.0 * n, 0.0).state for n in range(6)]
    assert states == [State.BACKOFF] * 4 + [State.CRASHLOOP] * 2


def test_r23_ends_that_are_far_apart_are_no_crash_loop() -> None:
    policy = RestartPolicy(RestartRules())
    states = {policy.after_exit(200.0 * n, 0.0).state for n in range(50)}
    assert states == {State.BACKOFF}


def test_r23_a_stable_period_wipes_the_record() -> None:
    policy = RestartPolicy(RestartRules(), vary=exact)
    for now in range(10):
        policy.after_exit(float(now), 0.0)
    decision = policy.after_exit(620.0, 600.0)
    assert (decision.state, decision.delay) == (State.BACKOFF, 1.0)


def test_restarts_end_at_the_limit_and_a_stable_period_gives_them_back() -> None:
    policy = RestartPolicy(RestartRules(max_restarts=2))
    states = [policy.after_exit(1.0, 0.0).state for _ in range(3)]
    assert states == [State.BACKOFF, State.BACKOFF, State.FAILED]
    assert policy.after_exit(700.0, 601.0).state is State.BACKOFF
    assert policy.total == 3


def test_no_restarts_means_failed_at_the_first_end() -> None:
    policy = RestartPolicy(RestartRules(max_restarts=0))
    assert policy.after_exit(1.0, 10_000.0).state is State.FAILED


def test_ends_to_recover_neither_lengthen_delays_nor_make_a_crash_loop() -> None:
    policy = RestartPolicy(RestartRules(), vary=exact)
    decisions = [policy.after_exit(float(n), 5.0, planned=True) for n in range(20)]
    assert {(each.state, each.delay) for each in decisions} == {(State.BACKOFF, 1.0)}
