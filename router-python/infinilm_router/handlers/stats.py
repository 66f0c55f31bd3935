"""`GET /stats`: counters of the router and of each service."""

from infinilm_router.handlers.context import Context, LocalAnswer, iso_time, json_answer
from infinilm_router.handlers.services import describe


def stats(ctx: Context) -> LocalAnswer:
    """Counts over all services listed; `in_flight` counts requests at engines now."""
    listed = [describe(ctx, service) for service in ctx.store.current.services]
    return json_answer(
        {
            "total_services": len(listed),
            "healthy_services": sum(1 for service in listed if service["healthy"]),
            "registry_url": ctx.registry_url,
            "in_flight": ctx.load.in_flight,
            "draining": ctx.draining(),
            "panic": _panic(ctx),
            "started_at": iso_time(ctx.started_at),
            "services": listed,
        }
    )


def _panic(ctx: Context) -> bool:
    """Whether ejection is overridden for some model, as selection does when it takes over half."""
    table, now = ctx.store.current, ctx.clock()
    for model in table.by_model:
        up = table.candidates(model)
        ejected = sum(1 for engine in up if ctx.load.of(engine).is_ejected(now))
        if 2 * ejected > len(up):
            return True
    return False
