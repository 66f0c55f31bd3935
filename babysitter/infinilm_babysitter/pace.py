"""When to call the registry next. Pure, and varied so that many babysitters never call in step."""

import random
from collections.abc import Callable

JITTER = 0.1
FIRST_RETRY = 0.5
"""Seconds to the first attempt after a failure; doubled up to the heartbeat interval."""
SOONEST = 0.1
"""Share of the interval after which the first heartbeat comes, at the soonest."""

Vary = Callable[[float, float], float]


def after_registration(interval: float, vary: Vary = random.uniform) -> float:
    """Somewhere in the interval: those that started, or lost their registry, together part here."""
    return interval * vary(SOONEST, 1 + JITTER)


def after_heartbeat(interval: float, vary: Vary = random.uniform) -> float:
    """The interval, more or less."""
    return interval * vary(1 - JITTER, 1 + JITTER)


def after_lost_heartbeat(interval: float, vary: Vary = random.uniform) -> float:
    """Sooner than the next one would come, but not with all others who lost theirs just now."""
    return interval * vary(0.25, 0.75)


def after_failure(interval: float, failures: int, vary: Vary = random.uniform) -> float:
    """With news to tell: soon, after more `failures` later, at most after the interval."""
    longest = min(FIRST_RETRY * 2.0 ** min(failures, 16), interval)
    return longest * vary(0.5, 1.0)
