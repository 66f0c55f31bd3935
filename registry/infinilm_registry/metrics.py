"""`GET /metrics` in Prometheus' text form. Few series, however odd the registrations are (R41)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from infinilm_registry.entry import Entry, Liveness
from infinilm_registry.membership import Membership
from infinilm_registry.table import ServiceTable
from infinilm_registry.watch import Watch

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HEARTBEAT = "heartbeat"
CALLS = ("register", "update", "remove", HEARTBEAT)
STATUSES = ("running", "starting", "draining", "restarting", "stalled", "stopped", "other")
_PREFIX = "infinilm_registry_"
_RESULTS = {
    401: "denied",
    403: "denied",
    404: "unknown",
    409: "other_instance",
    429: "limited",
    503: "unavailable",
}
RESULTS = ("ok", *dict.fromkeys(_RESULTS.values()), "invalid", "failed")

Samples = Mapping[str, float]


def result_of(status: int) -> str:
    """The word for an answer's status."""
    classes = {2: "ok", 4: "invalid", 5: "failed"}
    return _RESULTS.get(status) or classes.get(status // 100, "failed")


@dataclass(slots=True)
class CallCounts:
    """Answered writes by call and result."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, call: str | None, status: int) -> None:
        """Count one answer; reads, and calls that do not exist, are not counted."""
        if call in CALLS:
            self.counts[call, result_of(status)] += 1


@dataclass(frozen=True, slots=True)
class Metrics:
    """What the page is made of."""

    table: ServiceTable
    watch: Watch
    members: Membership
    calls: CallCounts

    def page(self) -> str:
        """The text."""
        rows = (*self._gauges(), *self._counters())
        return "".join(line for row in rows for line in _metric(*row))

    def _gauges(self) -> Iterator[tuple[str, str, str, Samples]]:
        entries, survey = self.table.entries(), self.table.survey()
        degraded = self.members.degraded_reason is not None
        stale = sum(entry.liveness is Liveness.STALE for entry in entries)
        for name, text, samples in (
            ("services", "Registered services by status.", _by_status(entries)),
            ("services_healthy", "Services that are healthy.", {"": _healthy(entries)}),
            ("services_stale", "Silent services kept by self-preservation.", {"": stale}),
            ("heartbeat_share", "Received of expected heartbeats, 0 to 1.", {"": survey.share}),
            ("self_preservation", "1 while nobody is expired.", {"": survey.preserving}),
            ("watchers", "Clients that wait for a change.", {"": self.watch.waiting}),
            ("store_degraded", "1 while something is wrong with the store.", {"": degraded}),
            ("store_down", "1 while changes cannot be stored.", {"": self.members.down}),
        ):
            yield name, "gauge", text, samples

    def _counters(self) -> Iterator[tuple[str, str, str, Samples]]:
        counts = self.calls.counts
        beats = {f'{{result="{result}"}}': counts[HEARTBEAT, result] for result in RESULTS}
        writes = {
            f'{{call="{call}",result="{result}"}}': counts[call, result]
            for call in CALLS
            if call != HEARTBEAT
            for result in RESULTS
        }
        expired = {"": self.table.expired}
        yield "heartbeats_total", "counter", "Answered heartbeats by result.", beats
        yield "writes_total", "counter", "Answered writes by call and result.", writes
        yield "expired_total", "counter", "Services given up because nothing was heard.", expired


def _by_status(entries: list[Entry]) -> Samples:
    known = Counter(dict.fromkeys(STATUSES, 0))
    known.update(e.service.status if e.service.status in STATUSES else "other" for e in entries)
    return {f'{{status="{status}"}}': count for status, count in known.items()}


def _healthy(entries: list[Entry]) -> int:
    return sum(entry.is_healthy for entry in entries)


def _metric(name: str, kind: str, text: str, samples: Samples) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{name} {text}\n# TYPE {_PREFIX}{name} {kind}\n"
    for labels, value in samples.items():
        yield f"{_PREFIX}{name}{labels} {float(value):.10g}\n"
