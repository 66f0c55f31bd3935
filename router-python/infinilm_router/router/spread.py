"""Keeps the probes of many engines apart: in step, they would be a burst every few seconds."""

import random
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Final

JITTER: Final = 0.1  # of the interval, so that many routers do not probe one engine in step
TRIES: Final = 4  # moments drawn for each probe; the one farthest from all others is taken


class Spread:
    """The moments of probes to come. Whoever takes one gives it back when it is over."""

    def __init__(self, draw: Callable[[float, float], float] = random.uniform) -> None:
        self._draw = draw
        self._moments: list[float] = []  # sorted

    def next(self, now: float, interval: float) -> float:
        """A moment about `interval` seconds from `now`."""
        drawn = [now + interval * self._draw(1 - JITTER, 1 + JITTER) for _ in range(TRIES)]
        moment = max(drawn, key=self._distance)
        insort(self._moments, moment)
        return moment

    def done(self, moment: float) -> None:
        """Its probe has begun, or will not."""
        del self._moments[bisect_left(self._moments, moment)]

    def _distance(self, moment: float) -> float:
        at = bisect_left(self._moments, moment)
        around = self._moments[max(0, at - 1) : at + 1]
        return min((abs(moment - other) for other in around), default=float("inf"))
