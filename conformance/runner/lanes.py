"""Each router's cases run one after the other; the routers do not wait for each other.

Most of a case is waiting, so two routers take hardly longer than one.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from runner.cases import Case
from runner.steps import run_case
from runner.transcript import Transcript
from runner.world import Key, Worlds


def key_of(router: str, case: Case) -> Key:
    """The world that a case needs."""
    return Key(router, case.group, case.id if case.fresh else "")


class Lane:
    """Runs the cases of one router in their order."""

    def __init__(self, router: str, cases: Sequence[Case]) -> None:
        self._keys = [key_of(router, case) for case in cases]
        self._cases = cases
        self._results: dict[str, Future[Transcript]] = {case.id: Future() for case in cases}

    def result(self, case: Case) -> Transcript:
        """What has come of a case, once it has run; raises what it raised."""
        return self._results[case.id].result()

    def run(self, stop: threading.Event) -> None:
        """Run all, or give up the rest when told to stop."""
        worlds = Worlds()
        try:
            for number, case in enumerate(self._cases):
                if stop.is_set():
                    break
                future = self._results[case.id]
                try:
                    world = worlds.get(self._keys[number], self._upcoming(number))
                    future.set_result(run_case(world, case))
                except BaseException as error:  # noqa: BLE001 - for whoever asks for the result
                    future.set_exception(error)
        finally:
            for future in self._results.values():  # nobody waits for what will not come
                future.cancel()
            worlds.close()

    def _upcoming(self, number: int) -> Key | None:
        """What is needed next that the case of that number has not."""
        later = self._keys[number + 1 :]
        return next((key for key in later if key != self._keys[number]), None)


class Lanes:
    """The lanes of all routers, in a thread each."""

    def __init__(self, cases: Mapping[str, Sequence[Case]]) -> None:
        self._stop = threading.Event()
        self._lanes = {router: Lane(router, of_router) for router, of_router in cases.items()}
        self._threads = ThreadPoolExecutor(max(1, len(cases)))
        self._running = [
            self._threads.submit(lane.run, self._stop) for lane in self._lanes.values()
        ]

    def result(self, router: str, case: Case) -> Transcript:
        """What has come of a case on a router."""
        return self._lanes[router].result(case)

    def close(self) -> None:
        """Return when all have ended, after the cases that are running now."""
        self._stop.set()
        self._threads.shutdown()
        for lane in self._running:
            lane.result()
