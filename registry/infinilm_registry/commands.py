"""What can be done to the membership: functions of a draft, tried before it is stored."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from infinilm_registry.addresses import Networks
from infinilm_registry.errors import (
    InstanceMismatchError,
    NotRegisteredError,
    RegistryFullError,
)
from infinilm_registry.service import Sender, Service
from infinilm_registry.validation import updated


class Draft:
    """The membership as it will be when the changes of the commands tried so far are stored.

    `find` and `size` are of the membership as it is.
    """

    def __init__(self, find: Callable[[str], Service | None], size: int) -> None:
        self.changes: dict[str, Service | None] = {}
        self.asked: set[str] = set()  # the names that commands looked up
        self._find = find
        self._size = size

    def __len__(self) -> int:
        return self._size

    def find(self, name: str) -> Service | None:
        """The service of that name, if any."""
        self.asked.add(name)
        if name in self.changes:
            return self.changes[name]
        return self._find(name)

    def owned(self, name: str, sender: Sender) -> Service:
        """The service of that name.

        Raises:
            NotRegisteredError: there is none.
            InstanceMismatchError: `sender` is another instance or generation.
        """
        service = self.find(name)
        if service is None:
            raise NotRegisteredError(name)
        check_sender(service, sender)
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


def check_sender(service: Service, sender: Sender) -> None:
    """InstanceMismatchError if `sender` is not the registered instance or generation."""
    if not sender.speaks_for(service):
        raise InstanceMismatchError(service.name, service.generation)


def register(service: Service, most_services: int) -> Command:
    """Add `service`, or let it take over its name as the next generation."""

    def command(draft: Draft) -> Service:
        old = draft.find(service.name)
        if old is None and len(draft) >= most_services:
            raise RegistryFullError(f"The registry is full: it holds {most_services} services", 60)
        new = replace(service, generation=old.generation + 1 if old else _first_generation())
        draft.put(new)
        return new

    return command


def _first_generation() -> int:
    """One that no earlier life of the name had, however often it was taken over in that life.

    Generations are only compared for being the same, so the clock may jump.
    """
    return time.time_ns() // 1_000  # few enough digits for a JSON number anywhere


def update(
    name: str, changes: Mapping[str, Any], sender: Sender, allowed: Networks = ()
) -> Command:
    """Change the given fields of `name`."""

    def command(draft: Draft) -> Service:
        new = updated(draft.owned(name, sender), changes, allowed)
        draft.put(new)
        return new

    return command


def remove(name: str, sender: Sender) -> Command:
    """Take `name` out."""

    def command(draft: Draft) -> Service:
        service = draft.owned(name, sender)
        draft.remove(name)
        return service

    return command


def remove_silent(service: Service, is_silent: Callable[[Service], bool]) -> Command:
    """Take `service` out, if it is still the registered one and still silent."""

    def command(draft: Draft) -> Service:
        if draft.find(service.name) is not service or not is_silent(service):
            raise NotRegisteredError(service.name)
        draft.remove(service.name)
        return service

    return command
