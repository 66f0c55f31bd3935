"""New connections as fast as they can be made, while a test does something to a port."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from rig.processes import wait_until
from rig.raw_client import RawClient


class Storm:
    """Each connection sends these bytes; `answers` counts statuses, and errors by their type."""

    def __init__(self, url: str, wire: bytes, threads: int) -> None:
        self.answers: Counter[str] = Counter()
        self._url, self._wire = url, wire
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._blow) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _blow(self) -> None:
        while not self._stop.is_set():
            answer = self._ask()
            with self._lock:
                self.answers[answer] += 1

    def _ask(self) -> str:
        try:
            with RawClient(self._url) as client:
                client.send(self._wire)
                return str(client.read().status)
        except OSError as error:
            return type(error).__name__

    def wait(self, more: int) -> None:
        """Return when there are so many more answers."""
        goal = self.answers.total() + more
        wait_until(lambda: self.answers.total() >= goal, 60, f"{more} more answers")

    def end(self) -> Counter[str]:
        """Stop, and what came of all connections."""
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        return self.answers


@contextlib.contextmanager
def storm(url: str, wire: bytes, threads: int = 3) -> Iterator[Storm]:
    """`with storm(url, request) as blowing: ...; answers = blowing.end()`."""
    blowing = Storm(url, wire, threads)
    try:
        yield blowing
    finally:
        blowing.end()
