"""`GET /stats`: counters of the router and of each service."""

from infinilm_router.handlers.context import Context, LocalAnswer, iso_time, json_answer
from infinilm_router.handlers.services import describe


def stats(ctx: Context) -> LocalAnswer:
    """Counts over all services listed; `in_flight` counts requests at engines now.

    `requests` have had their outcome, `failures` are those of them that failed, by code.
    `queued` counts those that wait for one, `queues` the same for each model (null: any model).
    """
    listed = [describe(ctx, service) for service in ctx.store.current.services]
    return json_answer(
        {
            "total_services": len(listed),
            "healthy_services": sum(1 for service in listed if service["healthy"]),
            "registry_url": ctx.registry_url,
            "in_flight": ctx.load.in_flight,
            "requests": ctx.counters.requests(),
            "failures": ctx.counters.by_code(),
            "retries": sum(ctx.counters.retries.values()),
            "queued": ctx.load.waiting,
            "queues": [{"model": m, "waiting": n} for m, n in ctx.room.lengths()],
            "draining": ctx.draining(),
            "panic": ctx.store.current.panic,
            "started_at": iso_time(ctx.started_at),
            "services": listed,
        }
    )
