"""Per-engine load and traffic health: the only state that changes with every request.

Load is counted where it arises: at dispatch, and released exactly once by the guard that
dispatch hands out, whatever the outcome. Traffic health ejects an engine after a run of its own
failures (never for a client's fault) for a time that doubles, then lets one request probe it.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from operator import add

from infinilm_router.router.engine import (
    AVERAGE_SHARE,
    BUSY_CAP,
    BUSY_DEFAULT,
    FAILURE_PENALTY,
    EngineLoad,
    Limits,
    Outcome,
    verdict,
)
from infinilm_router.router.retries import RetryBudget
from infinilm_router.router.table import Service, ServiceTable

EJECTION_BASE = 5.0  # seconds of the first ejection; doubles up to EJECTION_CAP
EJECTION_CAP = 60.0
EJECTIONS_FORGOTTEN_AFTER = 600.0  # seconds since the last one ended: the time is 5 s again
EJECTION_JITTER = 0.2


class InFlight:
    """One request on one engine, counted in. `release` counts it out; further calls do nothing.

    Whoever reads its answer sets `load.heard_at`: no call, since it happens with each read.
    """

    __slots__ = ("_book", "_prefill", "_probation", "_service", "_started", "load")

    def __init__(
        self, book: "LoadBook", service: Service, load: EngineLoad, prompt_bytes: int, now: float
    ) -> None:
        self._book: LoadBook | None = book
        self._service = service
        self.load = load
        self._started = now
        self._prefill: int | None = prompt_bytes  # None: its first byte is here
        self._probation = False
        if load.ejected_until:
            self._probation = load.on_probation = True
        load.in_flight = in_flight = load.in_flight + 1
        if in_flight == load.limit:
            book.full += 1
        load.prefill_requests += 1
        load.prefill_bytes += prompt_bytes
        load.request_count += 1
        if load.credit:
            load.credit = max(0.0, load.credit - 1)

    def answered(
        self, status: int, retry_after: float | None, *, stream: bool, now: float
    ) -> Outcome:
        """The answer's head is here: what it says of the engine.

        A long stream must not keep an engine on probation, so a good head counts at once. The head
        of a `stream` says nothing of its prompt, which may still be read: see `first_byte`.
        """
        load = self.load
        average = load.response_time
        elapsed = now - self._started
        load.response_time = average + AVERAGE_SHARE * (elapsed - average) if average else elapsed
        outcome = verdict(status, retry_after)
        if self._probation and outcome is Outcome.OK and self._book is not None:
            self._book.judge(self._service, load, outcome, now, probation=True)
            self._end_probation()
        if status >= 400:
            self._refused(status, retry_after, outcome, now)
        elif not stream:
            self.first_byte(now)
        return outcome

    def _refused(
        self, status: int, retry_after: float | None, outcome: Outcome, now: float
    ) -> None:
        """It answered with an error, for which it had to compute nothing."""
        self._end_prefill()
        if outcome is Outcome.BUSY:
            if self._book is not None:
                self._book.spare(self.load, retry_after, now)
        elif status >= 500:
            self.load.observe(max(now - self._started, FAILURE_PENALTY), now)

    def first_byte(self, now: float) -> None:
        """The first byte of a good answer's content is here: its prompt has been read."""
        if self._prefill is not None:
            self.load.observe(now - self._started, now)
            self._end_prefill()

    def release(self, outcome: Outcome, now: float) -> None:
        """End of the request, seen from the engine."""
        book = self._book
        if book is None:
            return
        self._book = None
        load = self.load
        if load.in_flight == load.limit:
            book.full -= 1
        load.in_flight -= 1
        if self._prefill is not None:
            self._end_prefill()
        probation = self._probation
        if probation:
            self._end_probation()
        if outcome is Outcome.ENGINE_FAULT:
            load.observe(max(now - self._started, FAILURE_PENALTY), now)
        if outcome is not Outcome.OK or load.consecutive_failures or load.ejected_until:
            book.judge(self._service, load, outcome, now, probation=probation)
        if book.waiting:
            book.on_free(now)

    def _end_prefill(self) -> None:
        if self._prefill is not None:
            self.load.prefill_requests -= 1
            self.load.prefill_bytes -= self._prefill
            self._prefill = None

    def _end_probation(self) -> None:
        if self._probation:
            self._probation = self.load.on_probation = False


class Turns:
    """Smooth round-robin's current weights for one model.

    They are kept as lists beside the candidates of the last turn: nearly always the next turn is
    among the same ones, and then takes a few operations on whole lists.
    """

    __slots__ = ("_candidates", "_current", "_resting", "_total", "_weights")

    def __init__(self) -> None:
        self._candidates: Sequence[Service] = ()
        self._current: list[float] = []
        self._weights: list[float] = []
        self._total = 0.0
        self._resting: dict[
            str, float
        ] = {}  # of those that were not candidates last: name -> weight

    def next(self, candidates: Sequence[Service]) -> Service:
        """Whose turn it is; `candidates` must not change afterwards."""
        if candidates is not self._candidates:
            self._rest()
            self._candidates = candidates
            self._current = [self._resting.pop(s.name, 0.0) for s in candidates]
            self._weights = [s.weight or 1.0 for s in candidates]
            self._total = sum(self._weights)
        current = self._current = list(map(add, self._current, self._weights))
        at = current.index(max(current))
        current[at] -= self._total
        return candidates[at]

    def _rest(self) -> None:
        self._resting.update(
            (s.name, weight) for s, weight in zip(self._candidates, self._current, strict=True)
        )
        self._candidates, self._current = (), []

    def forget_missing(self, names: Collection[str]) -> None:
        """Keep the weights of engines with these names only."""
        self._rest()
        self._resting = {n: weight for n, weight in self._resting.items() if n in names}


class LoadBook:
    """All engines' loads. Used on the event loop only.

    While nothing is special (nobody `full`, `any_ejected`, busy or warming: those end by
    `uneven_until`) selection need not look at single engines. `on_free` is called when a
    request has left its engine, and only while others are `waiting` for that.
    """

    def __init__(
        self, limits: Limits | None = None, jitter: Callable[[], float] = random.random
    ) -> None:
        self.limits = limits or Limits()
        self.waiting = 0
        self.full = 0  # engines at their limit
        self.any_ejected = False  # whether `is_ejected` can be true for anyone
        self.uneven_until = 0.0
        self.retries = RetryBudget()
        self.on_free: Callable[[float], None] = _nobody_waits
        self._jitter = jitter
        self._loads: dict[str, EngineLoad] = {}
        self._turns: dict[str | None, Turns] = {}

    @property
    def in_flight(self) -> int:
        """Requests at all engines."""
        return sum(load.in_flight for load in self._loads.values())

    def turns(self, model: str | None) -> Turns:
        """Whose turn it is among the engines of `model`."""
        turns = self._turns.get(model)
        if turns is None:
            turns = self._turns[model] = Turns()
        return turns

    def of(self, service: Service) -> EngineLoad:
        """The counters of `service`, made on first use."""
        load = self._loads.get(service.name)
        if load is None:
            load = self._loads[service.name] = EngineLoad(self._limit(service))
        return load

    def _limit(self, service: Service) -> int:
        return service.max_concurrency or self.limits.max_concurrency

    def heard_since(self, name: str, moment: float) -> bool:
        """Whether a byte of an answer has come from the engine after `moment`."""
        load = self._loads.get(name)
        return load is not None and load.heard_at > moment

    def begin(self, service: Service, now: float, prompt_bytes: int = 0) -> InFlight:
        """Count a request in; the caller must `release` what it gets."""
        load = self._loads.get(service.name) or self.of(service)
        return InFlight(self, service, load, prompt_bytes, now)

    def configure(self, limits: Limits, table: ServiceTable) -> None:
        """Go by these limits from now on."""
        self.limits = limits
        self._set_limits(table)

    def follow(self, last: ServiceTable, new: ServiceTable, now: float) -> None:
        """The table has changed: who comes takes up load slowly, who is gone is forgotten."""
        for service in _newcomers(last, new):
            self.warm(self.of(service), now)
        self._set_limits(new)
        self._forget_missing({service.name for service in new.services})

    def warm(self, load: EngineLoad, now: float) -> None:
        """Let an engine take up its share of the load slowly, from now on."""
        load.warm_since, load.credit = now, 0.0
        self.uneven_until = max(self.uneven_until, now + self.limits.slow_start)

    def spare(self, load: EngineLoad, retry_after: float | None, now: float) -> None:
        """The engine asks for a pause of so many seconds."""
        pause = BUSY_DEFAULT if retry_after is None else min(retry_after, BUSY_CAP)
        load.busy_until = max(load.busy_until, now + pause)
        self.uneven_until = max(self.uneven_until, load.busy_until)

    def _set_limits(self, table: ServiceTable) -> None:
        for service in table.services:
            if load := self._loads.get(service.name):
                load.limit = self._limit(service)
        self.full = sum(load.is_full() for load in self._loads.values())

    def _forget_missing(self, names: set[str]) -> None:
        """Drop the counters of engines that are gone and idle."""
        for name in [n for n, load in self._loads.items() if n not in names and not load.in_flight]:
            del self._loads[name]
        for turns in self._turns.values():
            turns.forget_missing(names)

    def judge(
        self, service: Service, load: EngineLoad, outcome: Outcome, now: float, *, probation: bool
    ) -> None:
        """Let the outcome of a request count for or against the engine.

        While it is ejected only its probation request counts: answers to older requests say how
        it was, not how it is.
        """
        if outcome is Outcome.NEUTRAL or outcome is Outcome.BUSY:
            return
        if outcome is Outcome.ENGINE_FAULT:
            load.error_count += 1
        if load.ejected_until and not probation:
            return
        if outcome is Outcome.OK:
            load.consecutive_failures = 0
            if load.ejected_until:
                load.ejected_until, load.ejections = 0.0, 0
                self.any_ejected = any(other.ejected_until for other in self._loads.values())
                self.warm(load, now)
            return
        load.consecutive_failures += 1
        limit = self.limits.max_fails if service.max_fails is None else service.max_fails
        if limit and (load.consecutive_failures >= limit or probation):
            self._eject(service, load, now)

    def _eject(self, service: Service, load: EngineLoad, now: float) -> None:
        base = EJECTION_BASE if service.fail_timeout is None else service.fail_timeout
        if load.ejected_until and now - load.ejected_until > EJECTIONS_FORGOTTEN_AFTER:
            load.ejections = 0
        span = min(EJECTION_CAP, base * 2**load.ejections)
        jitter = 1 + EJECTION_JITTER * (2 * self._jitter() - 1)
        load.ejected_until = now + span * jitter
        load.ejections = min(load.ejections + 1, 16)
        self.any_ejected = True


def _newcomers(last: ServiceTable, new: ServiceTable) -> Iterator[Service]:
    """The engines that begin to serve a model which others serve already."""
    served = {service.name for service in last.healthy_engines if service.models}
    for service in new.healthy_engines:
        if service.name not in served and any(last.candidates(m).up for m in service.models):
            yield service


def _nobody_waits(_: float) -> None:
    """What `on_free` is before there is a waiting room."""
