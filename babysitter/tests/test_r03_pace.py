"""R3: when babysitters call their registry, on a clock of the test."""

import collections
import random

import pytest

from infinilm_babysitter import pace

HEARTBEAT = 10.0


def first_call_after_outage(vary: random.Random, began: float, ended: float) -> float:
    """When a babysitter that registered at 0 reaches a registry that was away meanwhile."""
    now = pace.after_registration(HEARTBEAT, vary.uniform)
    while now < began:
        now += pace.after_heartbeat(HEARTBEAT, vary.uniform)
    while now < ended:
        now += pace.after_lost_heartbeat(HEARTBEAT, vary.uniform)
    return now - ended


@pytest.mark.parametrize("outage", [0.5, 2.0, 90.0])
@pytest.mark.parametrize("before", [1.0, 30.0])
def test_r03_500_babysitters_that_started_together_come_back_spread_over_seconds(
    outage: float, before: float
) -> None:
    """`before`: seconds after their common start at which the registry goes away."""
    vary = random.Random(7)
    calls = sorted(first_call_after_outage(vary, before, before + outage) for _ in range(500))
    middle = calls[475] - calls[25]
    each_second = collections.Counter(int(call) for call in calls)
    assert calls[-1] <= HEARTBEAT * 1.1
    assert calls[-1] - calls[0] >= 5
    assert middle >= 3, "and not by a few stragglers"
    assert max(each_second.values()) <= 125, "more than twice an even second's"


def test_r03_delays_never_leave_their_bounds() -> None:
    low, high = (lambda a, _b: a), (lambda _a, b: b)
    assert (pace.after_registration(10, low), pace.after_registration(10, high)) == (1, 11)
    assert (pace.after_heartbeat(10, low), pace.after_heartbeat(10, high)) == (9, 11)
    assert pace.after_lost_heartbeat(10, low) == 2.5
    assert pace.after_lost_heartbeat(10, high) == 7.5
    longest = [pace.after_failure(10, n, high) for n in range(7)]
    assert longest == [0.5, 1, 2, 4, 8, 10, 10]
    assert pace.after_failure(10, 10_000, low) == 5
