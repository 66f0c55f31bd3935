"""Per-engine load and traffic health: the only state that changes with every request.

Load is counted where it arises: at dispatch, and released exactly once by the guard that
dispatch hands out, whatever the outcome. Traffic health ejects an engine after a run of its own
failures (never for a client's fault) for a time that doubles, then lets one request probe it.
"""

import random
from collections.abc import Callable, Sequence
from enum import Enum

from infinilm_router.router.table import Service

EJECTION_BASE = 5.0  # seconds of the first ejection; doubles up to EJECTION_CAP
EJECTION_CAP = 60.0
EJECTIONS_FORGOTTEN_AFTER = 600.0  # seconds since the last one ended: the time is 5 s again
EJECTION_JITTER = 0.2
LATENCY_DECAY = 0.1  # weight of the newest sample in the moving average of response times


class Outcome(Enum):
    """How an engine did with one request."""

    OK = "ok"
    ENGINE_FAULT = "engine_fault"  # connect, reset, invalid answer, 502/503/504, first byte late
    NEUTRAL = "neutral"  # says nothing about the engine: client left, client's fault


class EngineLoad:
    """Counters of one engine; they survive table changes, keyed by the service's name."""

    __slots__ = (
        "consecutive_failures",
        "ejected_until",
        "ejections",
        "error_count",
        "in_flight",
        "on_probation",
        "request_count",
        "response_time",
    )

    def __init__(self) -> None:
        self.in_flight = 0
        self.request_count = 0
        self.error_count = 0
        self.response_time = 0.0  # seconds to the first byte, moving average
        self.consecutive_failures = 0
        self.ejected_until = 0.0
        self.ejections = 0
        self.on_probation = False

    def is_ejected(self, now: float) -> bool:
        """True while it must not get requests: ejected, or its one probation request is out."""
        if not self.ejected_until:
            return False
        return now < self.ejected_until or self.on_probation


class InFlight:
    """One request on one engine. `release` counts it out; further calls do nothing."""

    __slots__ = ("_book", "_load", "_probation", "_service", "_started")

    def __init__(self, book: "LoadBook", service: Service, load: EngineLoad, now: float) -> None:
        self._book: LoadBook | None = book
        self._service = service
        self._load = load
        self._started = now
        self._probation = bool(load.ejected_until)
        if self._probation:
            load.on_probation = True

    def first_byte(self, outcome: Outcome, now: float) -> None:
        """The answer's head is here: record the time it took and what its status says.

        A long stream must not keep an engine on probation, so a good head counts at once.
        """
        elapsed = now - self._started
        load = self._load
        if self._probation and outcome is Outcome.OK and self._book is not None:
            self._book.judge(self._service, load, outcome, now, probation=True)
            self._end_probation()
        if load.response_time:
            load.response_time += LATENCY_DECAY * (elapsed - load.response_time)
        else:
            load.response_time = elapsed

    def release(self, outcome: Outcome, now: float) -> None:
        """End of the request, seen from the engine."""
        book, self._book = self._book, None
        if book is None:
            return
        self._load.in_flight -= 1
        book.in_flight -= 1
        probation = self._probation
        self._end_probation()
        book.judge(self._service, self._load, outcome, now, probation=probation)

    def _end_probation(self) -> None:
        if self._probation:
            self._probation = self._load.on_probation = False


class RetryBudget:
    """Keeps retries from multiplying load on a bad day (Envoy's retry budget, tower's TpsBudget).

    Over a sliding window of 10 to 20 s, retries may be a fifth of the requests, or three a second.
    """

    WINDOW = 10.0
    SHARE = 0.2
    FLOOR = 3 * WINDOW

    def __init__(self) -> None:
        self.requests = 0  # of this window, without retries; counted by who starts them
        self._last_requests = 0
        self._started = 0.0
        self._retries = [0, 0]  # this window's, last window's

    def take(self, now: float) -> bool:
        """Count a retry and return True when the budget allows one more."""
        if now - self._started >= self.WINDOW:
            recent = now - self._started < 2 * self.WINDOW
            self._last_requests, self.requests = self.requests if recent else 0, 0
            self._retries = [0, self._retries[0] if recent else 0]
            self._started = now
        if sum(self._retries) >= max(
            self.FLOOR, self.SHARE * (self.requests + self._last_requests)
        ):
            return False
        self._retries[0] += 1
        return True


class LoadBook:
    """All engines' loads. Used on the event loop only."""

    def __init__(self, max_fails: int, jitter: Callable[[], float] = random.random) -> None:
        self.in_flight = 0
        self.any_ejected = False  # whether `is_ejected` can be true for anyone
        self.retries = RetryBudget()
        self.max_fails = max_fails
        self._jitter = jitter
        self._loads: dict[str, EngineLoad] = {}
        self._turns: dict[str | None, dict[str, float]] = {}

    def turns(self, model: str | None) -> dict[str, float]:
        """Smooth round-robin's current weights for `model`: service name -> weight."""
        turns = self._turns.get(model)
        if turns is None:
            turns = self._turns[model] = {}
        return turns

    def of(self, service: Service) -> EngineLoad:
        """The counters of `service`, made on first use."""
        load = self._loads.get(service.name)
        if load is None:
            load = self._loads[service.name] = EngineLoad()
        return load

    def begin(self, service: Service, now: float) -> InFlight:
        """Count a request in; the caller must `release` what it gets."""
        load = self.of(service)
        load.in_flight += 1
        load.request_count += 1
        self.in_flight += 1
        return InFlight(self, service, load, now)

    def forget_missing(self, services: Sequence[Service]) -> None:
        """Drop the counters of engines that are gone and idle."""
        names = {service.name for service in services}
        for name in [n for n, load in self._loads.items() if n not in names and not load.in_flight]:
            del self._loads[name]
        for turns in self._turns.values():
            for name in turns.keys() - names:
                del turns[name]

    def judge(
        self, service: Service, load: EngineLoad, outcome: Outcome, now: float, *, probation: bool
    ) -> None:
        """Let the outcome of a request count for or against the engine.

        While it is ejected only its probation request counts: answers to older requests say how
        it was, not how it is.
        """
        if outcome is Outcome.NEUTRAL:
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
            return
        load.consecutive_failures += 1
        limit = self.max_fails if service.max_fails is None else service.max_fails
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
