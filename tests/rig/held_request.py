"""A request whose answer has begun and goes on until somebody releases it."""

import contextlib
import http.client
import threading
import time
import urllib.request


class HeldRequest:
    """`GET /hold` of the babysitter's fake engine: half of the answer is there, then the rest."""

    def __init__(self, port: int) -> None:
        self.finished = 0.0
        self._answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/hold", timeout=30)
        self.body: bytes = self._answer.read(4)
        self._thread = threading.Thread(target=self._rest)
        self._thread.start()

    def _rest(self) -> None:
        with self._answer, contextlib.suppress(http.client.IncompleteRead, OSError):
            self.body += self._answer.read()
        self.finished = time.monotonic()

    def wait(self) -> None:
        """Until the answer has ended, whole or not."""
        self._thread.join(10)
