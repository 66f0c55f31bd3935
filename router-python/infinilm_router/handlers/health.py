"""`GET /health` and `GET /status`: how the router is."""

from dataclasses import replace

from infinilm_router.handlers.context import NOBODY, Context, LocalAnswer, iso_time, json_answer


def health(ctx: Context) -> LocalAnswer:
    """200 as long as the router takes requests, whatever its engines do; 503 while it drains."""
    return _answer(ctx, "healthy")


def status(ctx: Context) -> LocalAnswer:
    """The same with its own word."""
    return _answer(ctx, "running")


def _answer(ctx: Context, word: str) -> LocalAnswer:
    table = ctx.store.current
    up = len(table.healthy_engines)
    draining = ctx.draining()
    answer = json_answer(
        {
            "status": "draining" if draining else word,
            "router": "running",
            "healthy_services": f"{up}/{len(table.engines)}",
            "registry_url": ctx.registry_url,
            "message": None if up else NOBODY,
            "timestamp": iso_time(),
        },
        503 if draining else 200,
    )
    return replace(answer, headers=((b"Retry-After", b"1"),)) if draining else answer
