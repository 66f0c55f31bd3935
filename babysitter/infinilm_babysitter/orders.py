"""What people ask of a running babysitter over HTTP, until the supervisor has done it."""

import asyncio
import logging

log = logging.getLogger(__name__)


class Orders:
    """Written by the HTTP side, read and fulfilled by the supervisor."""

    def __init__(self) -> None:
        self.drained = False
        """The engine is to take no requests, until told otherwise; a crash does not change that."""
        self.restart = asyncio.Event()
        """A new engine is to be started in place of this one, or without waiting any longer."""
        self.restart_at_once = asyncio.Event()
        """The restart was ordered again: without waiting for answers."""
        self.changed = asyncio.Event()
        """Something was ordered that nobody has looked at yet."""

    def order_restart(self) -> None:
        """Drain, stop and start again; ends a drain. Ordered twice: without waiting for answers."""
        self._take("restart", drained=False)
        if self.restart.is_set():
            self.restart_at_once.set()
        self.restart.set()

    def begin_run(self) -> None:
        """A new engine is started: no order to do that is open any more."""
        self.restart.clear()
        self.restart_at_once.clear()

    def order_drain(self) -> None:
        """Take no new requests, and let the running answers end."""
        self._take("drain", drained=True)

    def order_undrain(self) -> None:
        """Take requests again."""
        self._take("undrain", drained=False)

    def _take(self, order: str, *, drained: bool) -> None:
        log.info("ordered order=%s", order)
        self.drained = drained
        self.changed.set()
