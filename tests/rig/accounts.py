"""What a router says of its failures: its log, /stats and /metrics, each as counts to compare."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from rig.raw_client import ask
from rig.routers import Router

FAILED = re.compile(
    r"(request|refused|attempt) id=(\S+) (?:.* )?error=(\w+) phase=(\w+) reason=\".*\"$"
)
ENGINE = re.compile(r" engine=(\S+)")
SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Failure(NamedTuple):
    """One kind of failure; `engine` is "" where none was chosen."""

    engine: str
    phase: str
    code: str


class Accounts(NamedTuple):
    """Failed requests, and attempts that were retried, in one of the router's books."""

    failures: Counter[Failure]
    retries: Counter[Failure]


def of_log(lines: Iterable[str]) -> Accounts:
    """One line for each; a request id that failed twice is an error of the log."""
    failures: Counter[Failure] = Counter()
    retries: Counter[Failure] = Counter()
    ids: Counter[str] = Counter()
    for line in lines:
        if not (match := FAILED.search(line)):
            continue
        kind, request_id, code, phase = match.groups()
        engine = ENGINE.search(line)
        failure = Failure(
            engine[1].replace("-", "", engine[1] == "-") if engine else "", phase, code
        )
        if kind == "attempt":
            retries[failure] += 1
        else:
            failures[failure] += 1
            ids[request_id] += 1
    assert max(ids.values(), default=1) == 1, f"two lines for one request: {ids.most_common(3)}"
    return Accounts(failures, retries)


class Sample(NamedTuple):
    """One line of /metrics."""

    name: str
    labels: dict[str, str]
    value: float


def samples(text: str) -> list[Sample]:
    """Every sample of a page of metrics; whatever is no sample and no comment is an error."""
    found = []
    for line in text.splitlines():
        if line.startswith("# "):
            continue
        match = SAMPLE.fullmatch(line)
        assert match, f"no metric: {line!r}"
        found.append(Sample(match[1], dict(LABEL.findall(match[2] or "")), float(match[3])))
    return found


def metrics(router: Router) -> list[Sample]:
    """What GET /metrics says now."""
    answer = ask(router.url, "GET", "/metrics")
    assert answer.status == 200
    return samples(answer.body.decode())


def of_metrics(found: Iterable[Sample]) -> Accounts:
    """Failures and retries of a page of metrics."""
    books: dict[str, Counter[Failure]] = {"failures": Counter(), "retries": Counter()}
    for name, labels, value in found:
        kind = name.removeprefix("infinilm_router_").removesuffix("_total")
        if kind in books:
            books[kind][Failure(**labels)] = int(value)
    return Accounts(**books)


def total(found: Iterable[Sample], name: str, **labels: str) -> int:
    """The sum of a metric over all its series that have these labels."""
    wanted = labels.items()
    full_name = f"infinilm_router_{name}"
    return int(sum(s.value for s in found if s.name == full_name and wanted <= s.labels.items()))
