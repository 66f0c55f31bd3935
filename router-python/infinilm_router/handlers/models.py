"""`GET /models`, `/v1/models`, `/v1/models/{id}`: from memory, never by asking engines."""

from urllib.parse import unquote_to_bytes

from infinilm_router.handlers.context import Context, LocalAnswer
from infinilm_router.router.selection import nobody_up


def models(ctx: Context) -> LocalAnswer:
    """The union over healthy engines."""
    return LocalAnswer(200, ctx.catalog.list())


def model(ctx: Context, escaped_id: bytes) -> LocalAnswer:
    """One model object; the id's slashes may be plain or `%2F`.

    Raises:
        RouterError: `model_not_found`, or `no_healthy_engine` where the model is known.
    """
    wanted = unquote_to_bytes(escaped_id).decode("utf-8", "replace")
    found = ctx.catalog.get(wanted)
    if found is None:
        raise nobody_up(ctx.store.current, wanted)
    return LocalAnswer(200, found)
