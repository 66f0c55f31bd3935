"""Calls at a fixed rate from a thread of their own, while a test does something to the system."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Self

from rig.load_client import Call, LoadClient, Outcome


class Traffic:
    """Sends `call(number)` at fixed times, `rate` a second, until `end` (or the `with` block's)."""

    def __init__(self, url: str, rate: float, call: Callable[[int], Call]) -> None:
        self._url, self._rate, self._call = url, rate, call
        self._stop = threading.Event()
        self.done: list[Outcome] = []  # in the order in which they ended
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send()), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def go_on(self, seconds: float) -> None:
        """Let it be sent for so long: a load has a length, this waits for nothing."""
        time.sleep(seconds)

    def end(self) -> list[Outcome]:
        """Stop sending and wait for the last answers; every outcome."""
        self._stop.set()
        self._thread.join(60)
        return self.done

    async def _send(self) -> None:
        client = LoadClient(self._url)
        tasks: list[asyncio.Task[None]] = []
        started = time.monotonic()
        while not self._stop.is_set():
            due = started + len(tasks) / self._rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(self._one(client, self._call(len(tasks)), due)))
        await asyncio.gather(*tasks)
        await client.close()

    async def _one(self, client: LoadClient, call: Call, due: float) -> None:
        self.done.append(await client.send(call, due))


def served_by(outcome: Outcome) -> str | None:
    """The engine that answered, as the router says."""
    return outcome.head.get("x-infinilm-service") if outcome.head else None


def faults(outcomes: Iterable[Outcome]) -> list[str]:
    """What is wrong with those that are not ok."""
    return [
        f"{outcome.status} from {served_by(outcome)}: {outcome.fault or outcome.data[:200]!r}"
        for outcome in outcomes
        if outcome.kind != "ok"
    ]


def percentile(values: Iterable[float], share: float) -> float:
    """The least value that `share` (0 to 1) of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
