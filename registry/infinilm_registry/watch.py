"""The list's revision, and those who wait for it to change (D13)."""

import asyncio
import time

# Registrations come in bursts; answering each would send every watcher the whole list many times.
_SETTLE_SECONDS = 0.02


class Watch:
    """A counter that wakes its waiters; starts at wall-clock milliseconds, so never repeats."""

    def __init__(self, start: int | None = None) -> None:
        self._revision = int(time.time() * 1000) if start is None else start
        self.waiting = 0
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def revision(self) -> int:
        """The number of the list as it is."""
        return self._revision

    def advance(self) -> None:
        """The list is not what it was."""
        self._revision += 1
        self._wake()

    def close(self) -> None:
        """Stop: everybody who waits is answered now, and nobody waits any more."""
        self._closed = True
        self._wake()

    async def changed_since(self, revision: int, seconds: float) -> bool:
        """Whether the revision is another one than `revision`, now or within `seconds`."""
        if self.revision != revision or seconds <= 0 or self._closed:
            return self.revision != revision
        self.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
                if not self._closed:
                    await asyncio.sleep(_SETTLE_SECONDS)
        except TimeoutError:
            pass
        finally:
            self.waiting -= 1
        return self.revision != revision

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
