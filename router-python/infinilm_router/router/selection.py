"""Which engine serves a request: candidates first, then a policy. No network, clock or lock."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from infinilm_router.router.load import LoadBook
from infinilm_router.router.policies import BY_KEY, POLICIES, round_robin, warm_enough
from infinilm_router.router.table import Candidates, Service, ServiceTable, preferred
from infinilm_router.utils.errors import Code, RouterError

MAX_SHOWN = 200  # characters of a model's name in an error


class Request:
    """What selection knows of a request.

    `model` None means that any engine will do; `key` groups requests that should meet the same
    engine (None: no such wish); `prompt` is the prompt's first 1,024 bytes as they stand in the
    body, `prompt_bytes` its size; `client` is the address of who asks; `tried` names the engines
    that were tried without success.
    """

    model: str | None = None
    stream = False
    key: bytes | None = None
    prompt = b""
    prompt_bytes = 0
    tried: tuple[str, ...] = ()

    def __init__(self, client: bytes = b"") -> None:
        self.client = client


class Choice(NamedTuple):
    """The engine, and why it was chosen (the value of `x-infinilm-policy`).

    In `panic` it was chosen although probes say that most engines of its model are down.
    """

    service: Service
    why: str
    panic: bool = False


class Nobody(Enum):
    """Why there is no choice: all that could serve were tried already, or have no room now."""

    TRIED = "tried"
    FULL = "full"


def choose(
    table: ServiceTable, request: Request, book: LoadBook, now: float, rules: "Rules"
) -> Choice | Nobody:
    """Choose an engine.

    Raises:
        RouterError: `model_not_found` or `no_healthy_engine`.
    """
    group = table.candidates(request.model)
    if not group.known:
        raise nobody_up(table, request.model)
    candidates = group.preferred
    uneven = now < book.uneven_until
    if uneven or book.full or book.any_ejected or request.tried or group.panic:
        found = _candidates(group, request, book, now, last_choice=rules.last_choice)
        if isinstance(found, Nobody):
            return found
        candidates = found
    if table.has_tiers:
        candidates = _cache_tier(candidates, request.prompt_bytes, rules.cache_type_threshold)
    if uneven and len(candidates) > 1 and rules.policy not in BY_KEY:
        candidates = warm_enough(candidates, book, now)
    service, why = _pick(candidates, request, book, now, rules.policy)
    if group.panic:
        why += "; panic"
    return Choice(service, rules.policy + why, group.panic)


def _pick(
    candidates: Sequence[Service], request: Request, book: LoadBook, now: float, policy: str
) -> tuple[Service, str]:
    if len(candidates) > 1:
        return POLICIES[policy](candidates, request, book, now)
    # Its turn is counted all the same, or it would be owed a burst when the others return.
    if policy == "round_robin":
        round_robin(candidates, request, book)
    return candidates[0], "; only candidate"


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of selection: the policy's name and the prompt size (bytes) that parts tiers.

    `last_choice` takes engines too that asked for a pause, rather than refusing the request.
    """

    policy: str
    cache_type_threshold: int = 51200
    last_choice: bool = False


def _candidates(
    group: Candidates, request: Request, book: LoadBook, now: float, *, last_choice: bool
) -> Sequence[Service] | Nobody:
    """Those that may take the request while not all is well."""
    up = _worth_trying(group, book) if group.panic else group.up
    free = [s for s in up if not book.of(s).is_ejected(now)]
    # Ejection protects requests from a few bad engines. When it would take more than half of a
    # model's engines, the cause is more likely to be common to all, and trying beats refusing.
    if 2 * len(free) < len(up):
        free = list(up)
    if request.tried:
        free = [s for s in free if s.name not in request.tried] or [
            s for s in up if s.name not in request.tried
        ]
    if not free:
        return Nobody.TRIED
    if not last_choice:
        free = [s for s in free if not book.of(s).is_busy(now)] or free
    return preferred([s for s in free if not book.of(s).is_full()]) or Nobody.FULL


def _worth_trying(group: Candidates, book: LoadBook) -> Sequence[Service]:
    """In panic: engines that are up or have not failed a request since they last served one."""
    return [
        s for s in group.known if s in group.up or not book.of(s).consecutive_failures
    ] or group.known


def nobody_up(table: ServiceTable, model: str | None) -> RouterError:
    """Why no engine can serve `model`."""
    if model is None:
        return RouterError(Code.NO_HEALTHY_ENGINE, "No OpenAI API services available")
    if not table.known or model in table.named:
        return RouterError(
            Code.NO_HEALTHY_ENGINE,
            f"No healthy services available for model '{_shown(model)}'",
            param="model",
        )
    return RouterError(
        Code.MODEL_NOT_FOUND,
        f"The model '{_shown(model)}' does not exist; GET /v1/models lists what is served",
        param="model",
    )


def _shown(model: str) -> str:
    """A name as an error tells it: what a client makes up may be as long as its body."""
    return model if len(model) <= MAX_SHOWN else f"{model[:MAX_SHOWN]}…"


def explain(error: RouterError, table: ServiceTable, request: Request) -> RouterError:
    """The error to tell of a request that was sent in panic.

    A connection that fails only confirms what probes said, unless an engine is up and untried.
    """
    up = table.candidates(request.model).up
    if error.code is Code.CONNECT_FAILED and all(s.name in request.tried for s in up):
        return nobody_up(table, request.model)
    return error


def _cache_tier(
    candidates: Sequence[Service], prompt_bytes: int, threshold: int
) -> Sequence[Service]:
    """Long prompts prefer engines with a static cache, others those with a paged one."""
    wanted = "static" if prompt_bytes > threshold else "paged"
    return [s for s in candidates if s.metadata.get("cache_type") == wanted] or candidates
