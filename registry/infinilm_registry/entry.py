"""One service and what is known about its life: immutable values, times are monotonic seconds."""

import enum
import math
from dataclasses import dataclass

from infinilm_registry.service import Service

_FALL, _RISE = 3, 2
_BEATS_PER_LEASE = 3
_LEASE_MARGIN = 5.0
_ASKED_INTERVAL = 10.0
_SHARED_PART = 2 / 3


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """How long a service may be silent, in seconds: until it is expired, until it is removed."""

    heartbeat_timeout: float = 120.0
    removal_timeout: float = 300.0

    def ttl(self, service: Service) -> float:
        """Three missed beats and a margin where the sender named its interval."""
        if service.heartbeat_interval is None:
            return self.heartbeat_timeout
        return _BEATS_PER_LEASE * service.heartbeat_interval + _LEASE_MARGIN

    def shared_ttl(self, service: Service) -> int:
        """The TTL, in whole seconds, of its lease in a store that several registries share.

        It is shorter than `ttl`: when many leases lapse one after the other, that must show before
        the first of those services is given up.
        """
        return math.ceil(self.ttl(service) * _SHARED_PART)

    def interval(self, service: Service) -> float:
        """How often the registry asks for heartbeats."""
        return service.heartbeat_interval or min(_ASKED_INTERVAL, self.heartbeat_timeout / 4)

    def grant(self, service: Service, now: float) -> "Lease":
        """A lease from `now` on; nothing is removed before it has expired."""
        ttl = self.ttl(service)
        return Lease(ttl, now + ttl, now + max(ttl, self.removal_timeout))


@dataclass(frozen=True, slots=True)
class Lease:
    """Computed once at each heartbeat; renewing makes a new one."""

    ttl: float
    expires_at: float
    removable_at: float


class Liveness(enum.Enum):
    """Whether anything is heard of it. STALE: nothing, but of so many that we suspect the network.

    EXPIRED is given up: silent as one of few.
    """

    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"


class ProbeResult(enum.Enum):
    """How a probe ended; the three failures say different things about who is at fault."""

    GOOD = "good"
    BAD = "bad"  # it answered, and not well: it lives
    REFUSED = "refused"  # its machine answered that nothing listens: it is dead
    SILENT = "silent"  # nothing came back: it, its machine or the network between us


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """What our own probes say: three failures take a service down, two successes bring it back."""

    last: ProbeResult | None = None
    repeats: int = 0  # of `last`, in a row
    streak: int = 0  # results in a row that are all good, or all failures
    down: bool = False

    def after(self, result: ProbeResult) -> "ProbeRecord":
        """The record with one more result."""
        good, was_good = result is ProbeResult.GOOD, self.last is ProbeResult.GOOD
        repeats = self.repeats + 1 if result is self.last else 1
        streak = self.streak + 1 if good == was_good else 1
        settled = streak >= (_RISE if good else _FALL)
        return ProbeRecord(result, repeats, streak, not good if settled else self.down)

    @property
    def health_status(self) -> str:
        """The contract's word for the last result."""
        if self.last is None:
            return "unknown"
        return "healthy" if self.last is ProbeResult.GOOD else "unhealthy"

    @property
    def dead(self) -> bool:
        """Nothing listens there: no network trouble looks like that."""
        return self.last is ProbeResult.REFUSED and self.repeats >= _FALL

    @property
    def unanswered(self) -> bool:
        """Down, and nothing comes back: which missing heartbeats would say as well."""
        return self.down and self.last is ProbeResult.SILENT

    @property
    def falling_silent(self) -> bool:
        """About to be unanswered; when many are, it shows before the first of them is judged."""
        return self.last is ProbeResult.SILENT and self.repeats >= _FALL - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A service, its lease and its probes. `last_heartbeat` is wall-clock seconds, for display."""

    service: Service
    lease: Lease
    last_heartbeat: float
    probe: ProbeRecord = ProbeRecord()
    liveness: Liveness = Liveness.FRESH

    @property
    def is_healthy(self) -> bool:
        """Running, not given up, and not failed by repeated probes.

        Probes without an answer are judged as silence is: alone by `liveness`.
        """
        return (
            self.service.status == "running"
            and self.liveness is not Liveness.EXPIRED
            and (not self.probe.down or self.probe.unanswered)
        )

    @property
    def watched(self) -> tuple[object, ...]:
        """What watchers are woken for."""
        return (self.service, self.liveness, self.is_healthy)

    def as_json(self) -> dict[str, object]:
        """S of the contract."""
        service = self.service
        return {
            "name": service.name,
            "host": service.host,
            "port": service.port,
            "hostname": service.hostname,
            "url": service.url,
            "status": service.status,
            "timestamp": service.timestamp,
            "last_heartbeat": self.last_heartbeat,
            "health_status": self.probe.health_status,
            "metadata": service.metadata,
            "weight": service.weight,
            "is_healthy": self.is_healthy,
            "stale": self.liveness is Liveness.STALE,
            "instance_id": service.instance_id,
            "generation": service.generation,
        }
