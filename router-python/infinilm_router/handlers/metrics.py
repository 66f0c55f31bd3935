"""`GET /metrics`: counters and gauges in Prometheus' text format (docs/METRICS.md)."""

from collections import Counter
from collections.abc import Callable, Mapping

from infinilm_router.handlers.context import Context, LocalAnswer
from infinilm_router.router.table import Service
from infinilm_router.utils.metrics import (
    CONTENT_TYPE,
    OTHER,
    Exposition,
    Failure,
    Sample,
    at_known_engines,
)

PREFIX = "infinilm_router_"


def metrics(ctx: Context) -> LocalAnswer:
    """All of it; engines are those of the table, in its order."""
    out = Exposition()
    _add_requests(ctx, out)
    _add_engines(ctx, out)
    _add_queues(ctx, out)
    _add_router(ctx, out)
    return LocalAnswer(200, out.text(), CONTENT_TYPE)


def _add_requests(ctx: Context, out: Exposition) -> None:
    counters = ctx.counters
    models = sorted(counters.models.items())
    out.add(
        f"{PREFIX}requests_total",
        "counter",
        "Requests by their outcome: ok, or the code of their failure.",
        (
            ({"model": model, "code": code}, count)
            for model, counts in models
            for code, count in sorted(counts.requests.items())
        ),
    )
    out.add(
        f"{PREFIX}failures_total",
        "counter",
        "Failed requests by engine, phase and code.",
        _failure_samples(ctx, counters.failures),
    )
    out.add(
        f"{PREFIX}retries_total",
        "counter",
        "Failed attempts that were not the end of their request, by engine, phase and code.",
        _failure_samples(ctx, counters.retries),
    )
    out.add_histograms(
        f"{PREFIX}time_to_first_byte_seconds",
        "From the whole request to the head of the answer.",
        (({"model": model}, c.first_byte) for model, c in models if any(c.first_byte.counts)),
    )
    out.add(
        f"{PREFIX}response_bytes_total",
        "counter",
        "Bytes of answers that were passed on.",
        [({}, counters.bytes_sent)],
    )


def _failure_samples(ctx: Context, counts: Mapping[Failure, int]) -> list[Sample]:
    names = {service.name for service in ctx.store.current.services}
    known = at_known_engines(counts, names)
    return [(failure._asdict(), count) for failure, count in known.items()]


def _add_engines(ctx: Context, out: Exposition) -> None:
    table, load, now = ctx.store.current, ctx.load, ctx.clock()
    found: tuple[tuple[str, str, str, Callable[[Service], int]], ...] = (
        ("up", "gauge", "1 = registry and probes say that it takes requests.", table.is_up),
        ("down", "gauge", "1 = its probes fail.", lambda s: s.name in table.down),
        (
            "ejected",
            "gauge",
            "1 = it gets no requests for a while, because they failed on it.",
            lambda s: load.of(s).is_ejected(now),
        ),
        ("busy", "gauge", "1 = it asked for a pause.", lambda s: load.of(s).is_busy(now)),
        ("in_flight", "gauge", "Requests that it serves now.", lambda s: load.of(s).in_flight),
        (
            "max_concurrency",
            "gauge",
            "Requests that it gets at once, at most.",
            lambda s: load.of(s).limit,
        ),
        (
            "prefill_requests",
            "gauge",
            "Requests sent to it that have no first byte yet.",
            lambda s: load.of(s).prefill_requests,
        ),
        (
            "prefill_bytes",
            "gauge",
            "Bytes of the prompts in those.",
            lambda s: load.of(s).prefill_bytes,
        ),
        (
            "requests_total",
            "counter",
            "Requests sent to it, second attempts included.",
            lambda s: load.of(s).request_count,
        ),
    )
    for name, kind, about, value in found:
        samples = [({"engine": engine.name}, value(engine)) for engine in table.engines]
        out.add(f"{PREFIX}engine_{name}", kind, about, samples)

    out.add(
        f"{PREFIX}engine_probes_total",
        "counter",
        "Finished probes by what they found.",
        [
            ({"engine": engine.name, "result": result}, count)
            for engine in table.engines
            for result, count in sorted(ctx.prober.view(engine.name).results.items())
        ],
    )


def _add_queues(ctx: Context, out: Exposition) -> None:
    """What waits for any model is `other`, as in the counts of requests."""
    waiting: Counter[str] = Counter()
    for model, count in ctx.room.lengths():
        waiting[model or OTHER] += count  # a model may have that very name
    samples = [({"model": model}, count) for model, count in sorted(waiting.items())]
    out.add(f"{PREFIX}queued", "gauge", "Requests that wait for an engine now.", samples)


def _add_router(ctx: Context, out: Exposition) -> None:
    gauges = (
        (
            "panic",
            "1 = probes leave less than half of some model's engines.",
            ctx.store.current.panic,
        ),
        ("draining", "1 = it is stopping.", ctx.draining()),
        ("client_connections", "Open connections of clients.", ctx.connections()),
        ("start_time_seconds", "When it started, in seconds since 1970.", ctx.started_at),
    )
    for name, about, value in gauges:
        out.add(f"{PREFIX}{name}", "gauge", about, [({}, value)])
