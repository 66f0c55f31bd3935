"""Which local endpoint a path belongs to."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from infinilm_router.handlers.context import Context, LocalAnswer
from infinilm_router.handlers.health import health, status
from infinilm_router.handlers.metrics import metrics
from infinilm_router.handlers.models import model, models
from infinilm_router.handlers.services import services
from infinilm_router.handlers.stats import stats

if TYPE_CHECKING:
    from infinilm_router.proxy.heads import RequestHead

Handler = Callable[["RequestHead"], LocalAnswer]

ROUTES: Mapping[bytes, Callable[[Context], LocalAnswer]] = {
    b"/health": health,
    b"/status": status,
    b"/stats": stats,
    b"/metrics": metrics,
    b"/services": services,
    b"/models": models,
    b"/v1/models": models,
}
MODEL_PREFIX = b"/v1/models/"


def find_handler(ctx: Context) -> Callable[[bytes], Handler | None]:
    """A function: raw path -> the handler of a GET on it, None for paths that are not local.

    Paths are compared as bytes: `/%68ealth` and `//health` are other paths, as they are to engines.
    """
    exact = {path: partial(_ignoring_head, partial(answer, ctx)) for path, answer in ROUTES.items()}

    def find(path: bytes) -> Handler | None:
        if path.startswith(MODEL_PREFIX):
            return lambda head: model(ctx, head.path[len(MODEL_PREFIX) :])
        return exact.get(path)

    return find


def _ignoring_head(answer: Callable[[], LocalAnswer], _: "RequestHead") -> LocalAnswer:
    return answer()
