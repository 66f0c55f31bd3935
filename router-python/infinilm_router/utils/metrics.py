"""What became of requests, counted; and the text in which Prometheus reads it (docs/METRICS.md)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
OK: Final = "ok"
OTHER: Final = "other"  # the label of what has no series of its own
MAX_LABELS: Final = 1000  # models, and kinds of failures, that have one
FIRST_BYTE_BOUNDS: Final = (0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Failure(NamedTuple):
    """What failed: at which engine ("" = none), in which phase, with which code."""

    engine: str
    phase: str
    code: str


class Histogram:
    """Seconds, counted between FIRST_BYTE_BOUNDS."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(FIRST_BYTE_BOUNDS) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value; a bound belongs to what is below it."""
        self.counts[bisect_left(FIRST_BYTE_BOUNDS, value)] += 1
        self.total += value


class ModelCounts:
    """The counts of one model: `requests` by outcome, and the time to the first byte."""

    __slots__ = ("first_byte", "requests")

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.first_byte = Histogram()


class Counters:
    """Counts since the router's start. Labels are models and engines that it knows, never more."""

    def __init__(self) -> None:
        self.models: dict[str, ModelCounts] = {}
        self.failures: dict[Failure, int] = {}
        self.retries: dict[Failure, int] = {}  # attempts that failed, but not the request with them
        self.bytes_sent = 0

    def ended(
        self,
        model: str | None,
        named: Collection[str],
        failure: Failure | None,
        first_byte: float | None,
    ) -> None:
        """Count the one outcome of a request; `named` are the models that engines have named."""
        counts = self.models.get(model or OTHER) or self._of(model, named)
        requests = counts.requests
        outcome = OK if failure is None else failure.code
        requests[outcome] = requests.get(outcome, 0) + 1
        if first_byte is not None:
            counts.first_byte.observe(first_byte)
        if failure is not None:
            _count(self.failures, failure)

    def retried(self, failure: Failure) -> None:
        """Count an attempt that failed and was not the last."""
        _count(self.retries, failure)

    def _of(self, model: str | None, named: Collection[str]) -> ModelCounts:
        if model is None or model not in named or len(self.models) >= MAX_LABELS:
            model = OTHER
        return self.models.setdefault(model, ModelCounts())

    def requests(self) -> int:
        """Requests that had their outcome."""
        return sum(count for counts in self.models.values() for count in counts.requests.values())

    def by_code(self) -> dict[str, int]:
        """Failed requests by code."""
        found: Counter[str] = Counter()
        for failure, count in self.failures.items():
            found[failure.code] += count
        return dict(sorted(found.items()))


def _count(counts: dict[Failure, int], failure: Failure) -> None:
    if failure not in counts and len(counts) >= MAX_LABELS:
        failure = failure._replace(engine=OTHER)
    counts[failure] = counts.get(failure, 0) + 1


def at_known_engines(counts: Mapping[Failure, int], engines: Collection[str]) -> dict[Failure, int]:
    """The counts, with engines that are gone under one name: theirs would pile up for ever."""
    found: Counter[Failure] = Counter()
    for failure, count in counts.items():
        known = not failure.engine or failure.engine in engines
        found[failure if known else failure._replace(engine=OTHER)] += count
    return dict(sorted(found.items()))


Labels = Mapping[str, str]
Sample = tuple[Labels, int | float]


class Exposition:
    """Metrics in Prometheus' text format, in the order in which they are added."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, name: str, kind: str, about: str, samples: Iterable[Sample]) -> None:
        """One metric with its samples."""
        self._begin(name, kind, about)
        self._lines += (_line(name, labels, value) for labels, value in samples)

    def add_histograms(
        self, name: str, about: str, histograms: Iterable[tuple[Labels, Histogram]]
    ) -> None:
        """One metric with a histogram for each set of labels."""
        self._begin(name, "histogram", about)
        for labels, histogram in histograms:
            self._lines += _histogram_lines(name, labels, histogram)

    def _begin(self, name: str, kind: str, about: str) -> None:
        self._lines += (f"# HELP {name} {about}", f"# TYPE {name} {kind}")

    def text(self) -> bytes:
        """All of it."""
        return ("\n".join(self._lines) + "\n").encode()


def _histogram_lines(name: str, labels: Labels, histogram: Histogram) -> Iterator[str]:
    below = 0
    bounds = [*(f"{bound:g}" for bound in FIRST_BYTE_BOUNDS), "+Inf"]
    for bound, count in zip(bounds, histogram.counts, strict=True):
        below += count
        yield _line(f"{name}_bucket", {**labels, "le": bound}, below)
    yield _line(f"{name}_sum", labels, histogram.total)
    yield _line(f"{name}_count", labels, below)


def _line(name: str, labels: Labels, value: float) -> str:
    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    number = f"{int(value)}" if isinstance(value, int) else f"{value:.6f}"
    return f"{name}{{{shown}}} {number}" if shown else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
