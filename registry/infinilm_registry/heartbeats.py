"""Self-preservation (D12, R29): many who fall silent at once are the network, not deaths.

The rule: of four services or more, when less than 85 % of what should be heard is heard, and not
just one sender lacks, nobody is given up; the silent are marked stale. Why not one sender: in a
small fleet a single dead machine is more than 15 %, and would be kept for ever. What all miss is
the network's fault, what one misses is its own. A babysitter and its engine are one sender:
they are registered by one process and fall silent together.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

THRESHOLD = 0.85
FEWEST_SERVICES = 4
FEWEST_SENDERS = 2
_WINDOW_LEASES = 2
_SENDER_JITTER = 1.1
# Before a lease runs out: when a whole group falls silent at once, its members count
# as silent already when the first of their leases ends.
_SILENT_SHARE_OF_LEASE = 2 / 3


@dataclass(frozen=True, slots=True)
class Survey:
    """What is heard of all services not yet given up: shares are 0 to 1 of what should be."""

    services: int
    share: float  # the mean
    lacking_senders: int  # whose own share is below the threshold

    @property
    def preserving(self) -> bool:
        """Whether so much is missing, from more than one, that nobody is given up."""
        return (
            self.services >= FEWEST_SERVICES
            and self.share < THRESHOLD
            and self.lacking_senders >= FEWEST_SENDERS
        )


def survey(shares: Iterable[tuple[str, float]]) -> Survey:
    """Sum up pairs of a service's sender and its share."""
    found = list(shares)
    lacking = {sender for sender, share in found if share < THRESHOLD}
    mean = sum(share for _, share in found) / len(found) if found else 1.0
    return Survey(len(found), mean, len(lacking))


@dataclass(slots=True)
class _Beats:
    """The heartbeats of one service within its window of two leases; seconds."""

    since: float
    ttl: float
    interval: float
    arrivals: deque[float] = field(init=False)

    def __post_init__(self) -> None:
        self.arrivals = deque(maxlen=max(1, self._expected(self._window)))

    @property
    def _window(self) -> float:
        return _WINDOW_LEASES * self.ttl

    def _expected(self, seconds: float) -> int:
        return int(seconds / (self.interval * _SENDER_JITTER))

    def beat(self, now: float) -> None:
        if self.since == -math.inf:
            self.since = now
        self.arrivals.append(now)

    def silence(self) -> None:
        self.since = -math.inf
        self.arrivals.clear()

    def share(self, now: float) -> float:
        """Received of expected heartbeats, 0 to 1; one that has fallen silent counts as lost."""
        last = self.arrivals[-1] if self.arrivals else self.since
        if now - last > self.ttl * _SILENT_SHARE_OF_LEASE:
            return 0.0
        expected = self._expected(min(self._window, now - self.since))
        received = sum(arrival > now - self._window for arrival in self.arrivals)
        return min(1.0, received / expected) if expected else 1.0


class HeartbeatLedger:
    """Remembers the recent heartbeats of each service."""

    def __init__(self) -> None:
        self._beats: dict[str, _Beats] = {}

    def start(self, name: str, ttl: float, interval: float | None, now: float) -> None:
        """A new registration. A sender that named no interval must beat twice in a lease."""
        self._beats[name] = _Beats(now, ttl, interval or ttl / 2)

    def beat(self, name: str, now: float) -> None:
        """A heartbeat arrived."""
        self._beats[name].beat(now)

    def silence(self, name: str) -> None:
        """Nobody hears it any more; what was heard before says nothing about now."""
        self._beats[name].silence()

    def forget(self, name: str) -> None:
        """The service is gone."""
        self._beats.pop(name, None)

    def share(self, name: str, now: float) -> float:
        """Received of expected heartbeats."""
        return self._beats[name].share(now)
