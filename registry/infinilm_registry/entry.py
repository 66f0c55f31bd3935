"""One service and what is known about its life: immutable values, times are monotonic seconds."""

import enum
from dataclasses import dataclass

from infinilm_registry.service import Service

_FALL, _RISE = 3, 2
_BEATS_PER_LEASE = 3
_LEASE_MARGIN = 5.0
_ASKED_INTERVAL = 10.0


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
    """What the heartbeats say. STALE: overdue, but so many are that we suspect the network."""

    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """What our own probes say: three failures take a service down, two successes bring it back."""

    health_status: str = "unknown"
    streak: int = 0
    down: bool = False

    def after(self, *, healthy: bool) -> "ProbeRecord":
        """The record with one more result."""
        status = "healthy" if healthy else "unhealthy"
        streak = self.streak + 1 if status == self.health_status else 1
        settled = streak >= (_RISE if healthy else _FALL)
        return ProbeRecord(status, streak, not healthy if settled else self.down)


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
        """Running, not expired, and not failed by repeated probes."""
        return (
            self.service.status == "running"
            and self.liveness is not Liveness.EXPIRED
            and not self.probe.down
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
