"""`GET /services`: every service the router knows, with its models."""

from infinilm_router.handlers.context import Context, LocalAnswer, iso_time, json_answer
from infinilm_router.router.table import Service


def services(ctx: Context) -> LocalAnswer:
    """All services of the table; babysitters are in it too, though they get no requests."""
    listed = [
        {**describe(ctx, service), "models": list(service.models)}
        for service in ctx.store.current.services
    ]
    return json_answer({"services": listed, "total": len(listed), "registry_url": ctx.registry_url})


def describe(ctx: Context, service: Service) -> dict[str, object]:
    """One service as `/services` and `/stats` show it; times are seconds."""
    load = ctx.load.of(service)
    now = ctx.clock()
    probes = ctx.prober.view(service.name)
    checked = probes.last_check
    return {
        "name": service.name,
        "host": service.host,
        "port": service.port,
        "url": service.url,
        "babysitter_url": f"http://{service.netloc(service.port + 1)}",
        "healthy": ctx.store.current.is_up(service),
        "status": service.status,
        "down_reason": probes.down_reason,
        "source": service.source,
        "backup": service.backup,
        "ejected": load.is_ejected(now),
        "busy": load.is_busy(now),
        "warming": load.warmth(now, ctx.load.limits.slow_start) < 1,
        "in_flight": load.in_flight,
        "max_concurrency": load.limit,
        "prefill_requests": load.prefill_requests,
        "prefill_bytes": load.prefill_bytes,
        "request_count": load.request_count,
        "error_count": load.error_count,
        "response_time": round(load.response_time, 6),
        "last_check": None if checked is None else iso_time(checked),
        "weight": service.weight,
        "metadata": dict(service.metadata),
    }
