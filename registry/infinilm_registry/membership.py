"""The only writer of the membership: checks in order, puts on disk, then publishes (D12).

Commands are taken from one queue. All that have gathered are tried on a draft, written in one
transaction and published together; so a burst costs few disk writes, and no check is ever made
against a state that another command is about to change.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from infinilm_registry.addresses import Networks
from infinilm_registry.commands import Command, Draft, remove_silent
from infinilm_registry.errors import RegistryError, StoreError
from infinilm_registry.service import Service
from infinilm_registry.store import Store
from infinilm_registry.table import ServiceTable
from infinilm_registry.validation import address_faults

LOG = logging.getLogger(__name__)
T = TypeVar("T")
_MOST_COMMANDS_AT_ONCE = 1_000
_MEND_SECONDS = 2.0


class Membership(Protocol):
    """Who changes the membership, wherever it is kept; what is stored stands in the table."""

    @property
    def degraded_reason(self) -> str | None:
        """What is wrong with where it is kept, for people; None if nothing."""

    @property
    def down(self) -> bool:
        """Whether changes cannot be stored now: the table may not be the last word."""

    @property
    def known(self) -> bool:
        """Whether what is kept has been read at all, so that the table means something."""

    async def submit(self, command: Command) -> Service:
        """Run `command`; returns when its change is stored and visible.

        Raises:
            RegistryError: refused, or (StoreError) not stored.
        """

    async def confirm(self, name: str) -> None:
        """Before a sender is refused: have the table say of `name` what is stored now.

        Raises:
            StoreError: that cannot be known.
        """

    async def remove_silent(self, service: Service) -> None:
        """Take `service` out, if it is still the registered one and still silent.

        Raises:
            RegistryError: it is not, or (StoreError) it could not be.
        """

    async def run(self) -> None:
        """Work until `close`."""

    def close(self) -> None:
        """Let `run` finish what it has begun and end."""

    async def release(self) -> None:
        """Let go of where the membership is kept, after `run` has ended."""


@dataclass(frozen=True, slots=True)
class _Order:
    command: Command
    done: asyncio.Future[Service]


class LocalMembership:
    """Runs commands one after the other; `store` is only ever touched on its own thread."""

    def __init__(self, table: ServiceTable, store: Store) -> None:
        self._table = table
        self._store = store
        self._orders: asyncio.Queue[_Order | None] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

    @property
    def degraded_reason(self) -> str | None:
        """What is wrong with the store."""
        return self._store.degraded_reason

    @property
    def down(self) -> bool:
        """Whether the last attempt to write failed."""
        return self._store.down

    @property
    def known(self) -> bool:
        """True: `load` comes first."""
        return True

    async def load(self, allowed: Networks) -> None:
        """Open the store and take over what it holds; every lease starts anew (R28).

        Raises:
            StoreUnusableError: the store cannot be had.
        """
        services = await self._on_thread(self._store.open)
        refused = [service.name for service in services if address_faults(service, allowed)]
        if refused:
            LOG.warning(
                "stored addresses are not allowed any more, dropped names=%s", ",".join(refused)
            )
            with contextlib.suppress(StoreError):  # then they are dropped at the next start
                await self._on_thread(self._store.write, dict.fromkeys(refused))
        self._table.publish({s.name: s for s in services if s.name not in refused})

    async def submit(self, command: Command) -> Service:
        """Run `command`; returns when its change is on disk and visible.

        Raises:
            RegistryError: refused, or (StoreError) not written; nothing was changed.
        """
        order = _Order(command, asyncio.get_running_loop().create_future())
        self._orders.put_nowait(order)
        return await order.done

    async def confirm(self, name: str) -> None:
        """Nothing to do: nobody else writes the store."""

    async def remove_silent(self, service: Service) -> None:
        """Take `service` out, if it is still the registered one and still silent."""
        await self.submit(remove_silent(service, self._table.is_silent))

    async def run(self) -> None:
        """Work until `close`."""
        async with asyncio.TaskGroup() as group:
            mending = group.create_task(self._mend_store())
            while batch := await self._next_batch():
                await self._execute(batch)
            mending.cancel()

    async def _mend_store(self) -> None:
        """Notice that a full or broken disk works again, also while nobody changes anything."""
        while True:
            await asyncio.sleep(_MEND_SECONDS)
            if self._store.down:
                with contextlib.suppress(StoreError):
                    await self._on_thread(self._store.write, {})
                    LOG.info("store works again")

    def close(self) -> None:
        """Let `run` finish what is queued and end."""
        self._orders.put_nowait(None)

    async def release(self) -> None:
        """Close the store, after `run` has ended."""
        await self._on_thread(self._store.close)
        self._thread.shutdown()

    async def _next_batch(self) -> list[_Order]:
        batch: list[_Order] = []
        order = await self._orders.get()
        while order is not None:
            batch.append(order)
            if self._orders.empty() or len(batch) == _MOST_COMMANDS_AT_ONCE:
                return batch
            order = self._orders.get_nowait()
        if batch:
            self._orders.put_nowait(None)
        return batch

    async def _execute(self, batch: list[_Order]) -> None:
        draft = Draft(self._registered, len(self._table))
        accepted = [(order, service) for order in batch if (service := _try(order, draft))]
        try:
            if draft.changes:
                await self._on_thread(self._store.write, draft.changes)
        except StoreError as error:
            LOG.warning("changes not stored count=%d reason=%r", len(draft.changes), str(error))
            for order, _ in accepted:
                _fail(order, error)
            return
        self._table.publish(draft.changes)
        log_changes(draft.changes)
        for order, service in accepted:
            if not order.done.done():
                order.done.set_result(service)

    def _registered(self, name: str) -> Service | None:
        entry = self._table.find(name)
        return entry.service if entry else None

    async def _on_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)


def _try(order: _Order, draft: Draft) -> Service | None:
    try:
        return order.command(draft)
    except RegistryError as error:
        _fail(order, error)
        return None


def _fail(order: _Order, error: RegistryError) -> None:
    # The sender may have gone meanwhile; its future is cancelled then.
    if not order.done.done():
        order.done.set_exception(error)


def log_changes(changes: Mapping[str, Service | None]) -> None:
    """One line for each service that was stored or removed."""
    for name, service in changes.items():
        if service is None:
            LOG.info("service removed name=%s", name)
        else:
            LOG.info(
                "service stored name=%s url=%s status=%s generation=%d",
                name,
                service.url,
                service.status,
                service.generation,
            )
