"""Deadlines fire once, at their last setting, and those of dead connections do not pile up."""

import asyncio
from collections.abc import Callable

from infinilm_router.utils import time as module
from infinilm_router.utils.time import Deadline, DeadlineQueue


class ManualLoop:
    """Stands in for the event loop: a clock that a test moves, and its one timer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> "ManualLoop.Handle":
        entry = (when, callback)
        self.timers.append(entry)
        return self.Handle(self, entry)

    def advance(self, to: float) -> None:
        while due := sorted((t for t in self.timers if t[0] <= to), key=lambda t: t[0]):
            self.timers.remove(due[0])
            self.now = due[0][0]
            due[0][1]()
        self.now = to

    class Handle:
        def __init__(self, loop: "ManualLoop", entry: tuple[float, Callable[[], None]]) -> None:
            self.loop, self.entry = loop, entry

        def cancel(self) -> None:
            if self.entry in self.loop.timers:
                self.loop.timers.remove(self.entry)


def made() -> tuple[ManualLoop, DeadlineQueue, list[float], Deadline]:
    loop = ManualLoop()
    queue = DeadlineQueue(loop)  # type: ignore[arg-type]
    fired: list[float] = []
    return loop, queue, fired, Deadline(lambda: fired.append(loop.now))


def test_a_deadline_fires_once_at_its_time() -> None:
    loop, queue, fired, deadline = made()
    queue.set(deadline, 2.0)
    loop.advance(1.9)
    assert fired == []
    loop.advance(50.0)
    assert fired == [2.0]


def test_the_last_setting_counts_whether_later_or_sooner() -> None:
    loop, queue, fired, deadline = made()
    queue.set(deadline, 2.0)
    queue.set(deadline, 9.0)
    loop.advance(5.0)
    queue.set(deadline, 1.0)
    loop.advance(20.0)
    assert fired == [6.0]


def test_a_cleared_deadline_does_not_fire() -> None:
    loop, queue, fired, deadline = made()
    queue.set(deadline, 2.0)
    deadline.clear()
    loop.advance(20.0)
    assert fired == []


def test_a_deadline_can_be_set_again_from_its_own_callback() -> None:
    loop, queue, fired, deadline = made()

    def again() -> None:
        fired.append(loop.now)
        if len(fired) < 3:
            queue.set(deadline, 1.0)

    deadline.callback = again
    queue.set(deadline, 1.0)
    loop.advance(10.0)
    assert fired == [1.0, 2.0, 3.0]


def test_entries_far_in_the_future_are_dropped_soon_after_they_are_cleared() -> None:
    loop, queue, _, _ = made()
    for _ in range(1000):
        deadline = Deadline(lambda: None)
        queue.set(deadline, 600.0)
        deadline.clear()
    loop.advance(module.HORIZON)
    assert queue._heap == []
    assert loop.timers == []


def test_it_works_on_a_real_loop() -> None:
    async def wait() -> None:
        done = asyncio.Event()
        queue = DeadlineQueue(asyncio.get_running_loop())
        queue.set(Deadline(done.set), 0.01)
        await done.wait()
        queue.close()

    asyncio.run(wait())
