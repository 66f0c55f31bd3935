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
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from infinilm_registry.addresses import Networks
from infinilm_registry.errors import (
    InstanceMismatchError,
    NotRegisteredError,
    RegistryError,
    RegistryFullError,
    StoreError,
)
from infinilm_registry.service import Service
from infinilm_registry.store import Store
from infinilm_registry.table import ServiceTable
from infinilm_registry.validation import address_faults, updated

LOG = logging.getLogger(__name__)
T = TypeVar("T")
_MOST_COMMANDS_AT_ONCE = 1_000


class Draft:
    """The membership as it will be when the commands tried so far are on disk."""

    def __init__(self, table: ServiceTable) -> None:
        self.changes: dict[str, Service | None] = {}
        self._table = table
        self._size = len(table)

    def __len__(self) -> int:
        return self._size

    def find(self, name: str) -> Service | None:
        """The service of that name, if any."""
        if name in self.changes:
            return self.changes[name]
        entry = self._table.find(name)
        return entry.service if entry else None

    def owned(self, name: str, instance_id: str | None) -> Service:
        """The service of that name.

        Raises:
            NotRegisteredError: there is none.
            InstanceMismatchError: `instance_id` is given and is not the one registered.
        """
        service = self.find(name)
        if service is None:
            raise NotRegisteredError(name)
        check_instance(service, instance_id)
        return service

    def put(self, service: Service) -> None:
        """Add or replace."""
        self._size += self.find(service.name) is None
        self.changes[service.name] = service

    def remove(self, name: str) -> None:
        """Take out."""
        self._size -= self.find(name) is not None
        self.changes[name] = None


Command = Callable[[Draft], Service]


def check_instance(service: Service, instance_id: str | None) -> None:
    """InstanceMismatchError if `instance_id` is given and is not the one that `service` has."""
    if instance_id is not None and instance_id != service.instance_id:
        raise InstanceMismatchError(service.name, service.generation)


def register(service: Service, most_services: int) -> Command:
    """Add `service`, or let it take over its name as the next generation."""

    def command(draft: Draft) -> Service:
        old = draft.find(service.name)
        if old is None and len(draft) >= most_services:
            raise RegistryFullError(f"The registry is full: it holds {most_services} services", 60)
        new = replace(service, generation=old.generation + 1 if old else 1)
        draft.put(new)
        return new

    return command


def update(
    name: str, changes: Mapping[str, Any], instance_id: str | None, allowed: Networks = ()
) -> Command:
    """Change the given fields of `name`."""

    def command(draft: Draft) -> Service:
        new = updated(draft.owned(name, instance_id), changes, allowed)
        draft.put(new)
        return new

    return command


def remove(name: str, instance_id: str | None) -> Command:
    """Take `name` out."""

    def command(draft: Draft) -> Service:
        service = draft.owned(name, instance_id)
        draft.remove(name)
        return service

    return command


def remove_silent(service: Service, table: ServiceTable) -> Command:
    """Take `service` out, if it is still the registered one and still silent."""

    def command(draft: Draft) -> Service:
        if draft.find(service.name) is not service or not table.is_silent(service):
            raise NotRegisteredError(service.name)
        draft.remove(service.name)
        return service

    return command


@dataclass(frozen=True, slots=True)
class _Order:
    command: Command
    done: asyncio.Future[Service]


class Membership:
    """Runs commands one after the other; `store` is only ever touched on its own thread."""

    def __init__(self, table: ServiceTable, store: Store) -> None:
        self._table = table
        self._store = store
        self._orders: asyncio.Queue[_Order | None] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

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

    async def run(self) -> None:
        """Work until `close`."""
        while batch := await self._next_batch():
            await self._execute(batch)

    def close(self) -> None:
        """Let `run` finish what is queued and end."""
        self._orders.put_nowait(None)

    async def close_store(self) -> None:
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
        draft = Draft(self._table)
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
        _log(draft.changes)
        for order, service in accepted:
            if not order.done.done():
                order.done.set_result(service)

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


def _log(changes: Mapping[str, Service | None]) -> None:
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
