"""Which of a registry's services stay in the table: decided from its answers, probes and time.

A service that left the healthy list may be gone, draining or only late with its heartbeat. A
registry that lost its memory must not take the engines with it. No network and no clock here.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from infinilm_router.router.table import Service

RUNNING = "running"
UNHEALTHY = "unhealthy"  # our word for: the registry lists it, but not as healthy, for too long
MAX_GUARDED_SHARE = 0.3  # of all engines, removed per answer after most were lost at once


@dataclass(slots=True)
class _Missing:
    """A service that is not in the healthy list, and since when.

    `guarded`: it was lost together with most others, so the registry is the likelier culprit.
    `listed`: the registry still has it, though not as healthy.
    """

    since: float
    guarded: bool
    listed: bool = False


class Membership:
    """The services that a registry has named and that are not removed yet."""

    def __init__(self, grace: float = 0.0) -> None:
        self.grace = grace
        self._services: dict[str, Service] = {}
        self._missing: dict[str, _Missing] = {}

    @property
    def services(self) -> tuple[Service, ...]:
        """All of them, the missing ones too, in the order in which they came."""
        return tuple(self._services.values())

    @property
    def missing(self) -> Collection[str]:
        """Names of those that the last answer left out."""
        return self._missing.keys()

    def restore(self, services: Iterable[Service]) -> None:
        """Start from a saved list; the first answer decides what is missing."""
        self._services = {service.name: service for service in services}

    def healthy(self, services: Iterable[Service], now: float) -> None:
        """Take in an answer: the list of healthy services at time `now`."""
        present = {service.name: service for service in services}
        before = {name: s for name, s in self._services.items() if name not in self._missing}
        lost = [name for name in before if name not in present]
        guarded = self._lost_most(before, present)
        self._missing = {n: m for n, m in self._missing.items() if n not in present}
        self._missing.update((name, _Missing(now, guarded)) for name in lost)
        self._services.update(present)

    @staticmethod
    def _lost_most(before: dict[str, Service], present: dict[str, Service]) -> bool:
        """Whether more than half of the engines, or the last one, went at once."""
        engines = [name for name, service in before.items() if service.is_engine]
        lost = sum(1 for name in engines if name not in present)
        return 2 * lost > len(engines)

    def listed(self, services: Iterable[Service]) -> None:
        """Take in the full list: what the registry says of those missing from the healthy one.

        A status other than running counts at once: a draining engine gets no new request.
        """
        full = {service.name: service for service in services}
        for name, missing in self._missing.items():
            entry = full.get(name)
            missing.listed = entry is not None
            if entry is not None and entry.status != RUNNING:
                self._services[name] = entry

    def expire(self, now: float, down: Collection[str]) -> list[str]:
        """Remove what has been missing for the grace period; the names of what was removed.

        `down` names the services whose probes fail.
        """
        quota = max(1, int(MAX_GUARDED_SHARE * len(self._services)))
        removed = []
        for name, missing in list(self._missing.items()):
            if now - missing.since < self.grace or self._stays(name, missing, down):
                continue
            if missing.guarded:
                quota -= 1
                if quota < 0:
                    continue
            removed.append(name)
            del self._missing[name], self._services[name]
        return removed

    def _stays(self, name: str, missing: _Missing, down: Collection[str]) -> bool:
        """Whether a service stays although its grace period is over."""
        service = self._services[name]
        if service.metadata.get("static") is True:
            return True
        running = service.status == RUNNING
        if running and missing.guarded and service.is_engine and name not in down:
            return True
        if running and missing.listed:
            self._services[name] = replace(service, status=UNHEALTHY)
        return missing.listed
