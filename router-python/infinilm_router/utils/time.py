"""The monotonic clock and one queue for all deadlines of the data path."""

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable

# A queued entry is looked at again after this many seconds at the latest, so that the entries of
# closed connections do not pile up behind deadlines of many minutes.
HORIZON = 5.0


class Deadline:
    """A moment at which `callback` is called, unless it is moved or cleared before.

    Moving it is an attribute write in the common case (later than before), which is why a
    connection keeps one for its life instead of making a timer for each request.
    """

    __slots__ = ("callback", "queued_at", "when")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.when = math.inf
        self.queued_at = math.inf

    def clear(self) -> None:
        """Do not call it."""
        self.when = math.inf


class DeadlineQueue:
    """A heap of deadlines served by a single loop timer. Used on the event loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = loop.time
        self._loop = loop
        self._heap: list[tuple[float, int, Deadline]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def set(self, deadline: Deadline, delay: float) -> None:
        """Call `deadline.callback` in `delay` seconds; replaces what was set before."""
        when = deadline.when = self.now() + delay
        if when < deadline.queued_at:
            self._queue(deadline, self.now())

    def close(self) -> None:
        """Stop the timer; nothing is called any more."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _queue(self, deadline: Deadline, now: float) -> None:
        at = min(deadline.when, now + HORIZON)
        if deadline.queued_at <= at:
            return
        deadline.queued_at = at
        heapq.heappush(self._heap, (at, next(self._order), deadline))
        if at < self._timer_at:
            self._start_timer(at)

    def _start_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        now = self.now()
        self._timer, self._timer_at = None, math.inf
        heap = self._heap
        while heap and heap[0][0] <= now:
            at, _, deadline = heapq.heappop(heap)
            if deadline.queued_at != at:
                continue  # moved to an earlier moment since: that entry has been served
            deadline.queued_at = math.inf
            if deadline.when <= now:
                deadline.when = math.inf
                deadline.callback()
            elif deadline.when != math.inf:
                self._queue(deadline, now)
        if heap and heap[0][0] < self._timer_at:
            self._start_timer(heap[0][0])
