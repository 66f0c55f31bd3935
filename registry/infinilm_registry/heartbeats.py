"""Self-preservation (D12, R29): many heartbeats missing at once are the network, not deaths."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

THRESHOLD = 0.85
FEWEST_SERVICES = 4
_WINDOW_LEASES = 2
_SENDER_JITTER = 1.1
# Before a lease runs out: when a whole group falls silent at once, its members count
# as silent already when the first of their leases ends.
_SILENT_SHARE_OF_LEASE = 2 / 3


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

    def share(self, now: float) -> float:
        """Received of expected heartbeats, 0 to 1; one that has fallen silent counts as lost."""
        last = self.arrivals[-1] if self.arrivals else self.since
        if now - last > self.ttl * _SILENT_SHARE_OF_LEASE:
            return 0.0
        expected = self._expected(min(self._window, now - self.since))
        received = sum(arrival > now - self._window for arrival in self.arrivals)
        return min(1.0, received / expected) if expected else 1.0


class HeartbeatLedger:
    """Remembers recent heartbeats and judges whether they fail one by one or all together."""

    def __init__(self) -> None:
        self._beats: dict[str, _Beats] = {}

    def start(self, name: str, ttl: float, interval: float | None, now: float) -> None:
        """A new registration. A sender that named no interval must beat twice in a lease."""
        self._beats[name] = _Beats(now, ttl, interval or ttl / 2)

    def beat(self, name: str, now: float) -> None:
        """A heartbeat arrived."""
        self._beats[name].arrivals.append(now)

    def forget(self, name: str) -> None:
        """The service is gone."""
        self._beats.pop(name, None)

    def received_share(self, names: Iterable[str], now: float) -> float:
        """Mean over `names` of received to expected heartbeats; 1.0 for none."""
        shares = [self._beats[name].share(now) for name in names]
        return sum(shares) / len(shares) if shares else 1.0
