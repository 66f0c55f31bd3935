"""What runs beside the requests: time passing, and clean-up. Each loop ends when `stop` is set."""

import asyncio
import logging

from infinilm_registry.errors import RegistryError
from infinilm_registry.membership import Membership
from infinilm_registry.table import ServiceTable

LOG = logging.getLogger(__name__)


async def stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    """Wait `seconds`, or less if `stop` is set: then True."""
    try:
        async with asyncio.timeout(seconds):
            return await stop.wait()
    except TimeoutError:
        return stop.is_set()


async def let_time_pass(table: ServiceTable, stop: asyncio.Event) -> None:
    """Have leases run out on time even if nobody asks, so that watchers are woken."""
    pause = min(1.0, table.terms.heartbeat_timeout / 10)
    while not await stopped_within(stop, pause):
        table.refresh()


async def clean_up(
    table: ServiceTable, members: Membership, stop: asyncio.Event, interval: float
) -> None:
    """Remove every `interval` seconds what has been silent for too long."""
    while not await stopped_within(stop, interval):
        silent = table.removable()
        submitted = (members.remove_silent(service) for service in silent)
        for outcome in await asyncio.gather(*submitted, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, RegistryError):
                raise outcome  # refusals and a failing store: the next round tries again
        if silent:
            LOG.info("clean-up ended silent=%d", len(silent))
