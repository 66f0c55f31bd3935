"""A changing set of background tasks with one owner."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Mapping
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
Job = Callable[[], Coroutine[Any, Any, None]]


class TaskSet(Generic[Key]):
    """One running task for each key that is wanted."""

    def __init__(self) -> None:
        self._tasks: dict[Key, asyncio.Task[None]] = {}

    def keep(self, wanted: Mapping[Key, Job]) -> None:
        """Start what is new (or has died) and cancel what is not wanted any more."""
        for key in self._tasks.keys() - wanted.keys():
            self._tasks.pop(key).cancel()
        for key, job in wanted.items():
            task = self._tasks.get(key)
            if task is None or task.done():
                self._tasks[key] = task = asyncio.create_task(job())
                task.add_done_callback(_log_failure)

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        tasks = list(self._tasks.values())
        self.keep({})
        await asyncio.gather(*tasks, return_exceptions=True)


def _log_failure(task: asyncio.Task[None]) -> None:
    """A task that ends by a fault of ours must be seen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background task failed", exc_info=error)
