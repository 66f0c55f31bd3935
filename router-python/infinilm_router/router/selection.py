"""Which engine serves a request: candidates first, then a policy. No network, clock or lock."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import xxhash

from infinilm_router.router.engine import MAX_CREDIT
from infinilm_router.router.load import LoadBook
from infinilm_router.router.table import Candidates, Service, ServiceTable, preferred
from infinilm_router.utils.errors import Code, RouterError

BOUNDED_LOAD = 1.25  # consistent_hash: no engine above this multiple of the mean in flight
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


Policy = Callable[[Sequence[Service], Request, LoadBook, float], tuple[Service, str]]


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
    candidates = _candidates(group, request, book, now, last_choice=rules.last_choice)
    if isinstance(candidates, Nobody):
        return candidates
    if table.has_tiers:
        candidates = _cache_tier(candidates, request.prompt_bytes, rules.cache_type_threshold)
    service, why = _pick(candidates, request, book, now, rules.policy)
    if group.panic:
        why += "; panic"
    return Choice(service, rules.policy + why, group.panic)


def _pick(
    candidates: Sequence[Service], request: Request, book: LoadBook, now: float, policy: str
) -> tuple[Service, str]:
    if len(candidates) > 1 and now < book.uneven_until and policy not in _BY_KEY:
        candidates = _warm_enough(candidates, book, now)
    if len(candidates) > 1:
        return POLICIES[policy](candidates, request, book, now)
    # Its turn is counted all the same, or it would be owed a burst when the others return.
    if policy == "round_robin":
        _round_robin(candidates, request, book)
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
    if not (book.full or book.any_ejected or request.tried or group.panic) and (
        now >= book.uneven_until
    ):
        return group.preferred
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


def _warm_enough(candidates: Sequence[Service], book: LoadBook, now: float) -> Sequence[Service]:
    """Those that may take a request now: engines that have just come take up their share slowly.

    While one is new it earns credit with each request that it might have got, a growing part of
    its fair share, and is a candidate only with credit for a whole one.
    """
    total = sum(s.weight or 1.0 for s in candidates)
    ready = []
    for service in candidates:
        load = book.of(service)
        warmth = load.warmth(now, book.limits.slow_start)
        if warmth < 1:
            load.credit = min(MAX_CREDIT, load.credit + warmth * (service.weight or 1.0) / total)
        if warmth == 1 or load.credit >= 1:
            ready.append(service)
    return ready or candidates


def _round_robin(
    candidates: Sequence[Service], request: Request, book: LoadBook, _: float = 0.0
) -> tuple[Service, str]:
    """Smooth weighted round-robin, as nginx interleaves: 5:1:1 gives a a b a c a a."""
    turns = book.turns(request.model)
    best, best_turn, total = candidates[0], float("-inf"), 0.0
    for service in candidates:
        weight = service.weight or 1.0
        total += weight
        turn = turns[service.name] = turns.get(service.name, 0.0) + weight
        if turn > best_turn:
            best, best_turn = service, turn
    turns[best.name] -= total
    return best, "; its turn"


def _least_loaded(
    candidates: Sequence[Service], request: Request, book: LoadBook, _: float
) -> tuple[Service, str]:
    least = min(_load(s, book) for s in candidates)
    equal = [s for s in candidates if _load(s, book) == least]
    return _round_robin(equal, request, book)[0], "; fewest in flight"


def _load(service: Service, book: LoadBook) -> float:
    return book.of(service).in_flight / (service.weight or 1.0)


def _power_of_two(
    candidates: Sequence[Service], _: Request, book: LoadBook, now: float
) -> tuple[Service, str]:
    """Of two engines the one where waiting is expected to be shorter (linkerd's peak EWMA)."""
    first, second = random.sample(candidates, 2)
    timed = book.of(first).estimate > 0 and book.of(second).estimate > 0
    shorter = _wait(second, book, now, timed=timed) < _wait(first, book, now, timed=timed)
    return second if shorter else first, "; the less loaded of two"


def _wait(service: Service, book: LoadBook, now: float, *, timed: bool) -> float:
    """What one more request costs there; not `timed`, requests count alone."""
    load = book.of(service)
    latency = load.latency(now) if timed else 1.0
    return (load.in_flight + 1) * latency / (service.weight or 1.0)


def _random(
    candidates: Sequence[Service], _: Request, __: LoadBook, ___: float
) -> tuple[Service, str]:
    weights = [s.weight or 1.0 for s in candidates]
    return random.choices(candidates, weights)[0], "; by lot"  # noqa: S311 - no secret depends on it


def _consistent_hash(
    candidates: Sequence[Service], request: Request, book: LoadBook, _: float
) -> tuple[Service, str]:
    key = request.key if request.key is not None else request.prompt
    return rendezvous(key, candidates, book), "; affinity key" if request.key else "; prompt head"


def _ip_hash(
    candidates: Sequence[Service], request: Request, book: LoadBook, _: float
) -> tuple[Service, str]:
    return rendezvous(request.client, candidates, book), "; client address"


def rendezvous(key: bytes, candidates: Sequence[Service], book: LoadBook) -> Service:
    """Highest random weight (Thaler and Ravishankar, 1998) with bounded load.

    The order of engines for a key depends on their names only, so it is the same in every
    replica; an engine that holds more than BOUNDED_LOAD times the mean in flight is passed over.
    """
    total = sum(book.of(s).in_flight for s in candidates) + 1
    bound = BOUNDED_LOAD * total / len(candidates)
    free = [s for s in candidates if book.of(s).in_flight < bound] or candidates
    return max(free, key=lambda s: (xxhash.xxh3_64_intdigest(key, _engine_id(s.name)), s.name))


def _engine_id(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())


_BY_KEY = frozenset(("consistent_hash", "ip_hash"))  # where an engine's keys are its share
POLICIES: Mapping[str, Policy] = {
    "round_robin": _round_robin,
    "least_loaded": _least_loaded,
    "power_of_two": _power_of_two,
    "consistent_hash": _consistent_hash,
    "ip_hash": _ip_hash,
    "random": _random,
}
