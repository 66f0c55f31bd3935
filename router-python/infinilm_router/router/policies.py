"""Policies: whom of several candidates a request goes to. No network, clock or lock."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import xxhash

from infinilm_router.router.engine import MAX_CREDIT
from infinilm_router.router.load import LoadBook
from infinilm_router.router.table import Service

if TYPE_CHECKING:
    from infinilm_router.router.selection import Request

BOUNDED_LOAD = 1.25  # consistent_hash: no engine above this multiple of the mean in flight

Policy = Callable[[Sequence[Service], "Request", LoadBook, float], tuple[Service, str]]


def warm_enough(candidates: Sequence[Service], book: LoadBook, now: float) -> Sequence[Service]:
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


def round_robin(
    candidates: Sequence[Service], request: "Request", book: LoadBook, _: float = 0.0
) -> tuple[Service, str]:
    """Smooth weighted round-robin, as nginx interleaves: 5:1:1 gives a a b a c a a."""
    return book.turns(request.model).next(candidates), "; its turn"


def _least_loaded(
    candidates: Sequence[Service], request: "Request", book: LoadBook, _: float
) -> tuple[Service, str]:
    least = min(_load(s, book) for s in candidates)
    equal = [s for s in candidates if _load(s, book) == least]
    return round_robin(equal, request, book)[0], "; fewest in flight"


def _load(service: Service, book: LoadBook) -> float:
    return book.of(service).in_flight / (service.weight or 1.0)


def _power_of_two(
    candidates: Sequence[Service], _: "Request", book: LoadBook, now: float
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
    candidates: Sequence[Service], _: "Request", __: LoadBook, ___: float
) -> tuple[Service, str]:
    weights = [s.weight or 1.0 for s in candidates]
    return random.choices(candidates, weights)[0], "; by lot"  # noqa: S311 - no secret depends on it


def _consistent_hash(
    candidates: Sequence[Service], request: "Request", book: LoadBook, _: float
) -> tuple[Service, str]:
    key = request.key if request.key is not None else request.prompt
    return rendezvous(key, candidates, book), "; affinity key" if request.key else "; prompt head"


def _ip_hash(
    candidates: Sequence[Service], request: "Request", book: LoadBook, _: float
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


BY_KEY = frozenset(("consistent_hash", "ip_hash"))  # where an engine's keys are its share
POLICIES: Mapping[str, Policy] = {
    "round_robin": round_robin,
    "least_loaded": _least_loaded,
    "power_of_two": _power_of_two,
    "consistent_hash": _consistent_hash,
    "ip_hash": _ip_hash,
    "random": _random,
}
