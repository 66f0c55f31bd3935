"""One engine's counters, and what its answers say of it."""

import math
from dataclasses import dataclass
from enum import Enum

AVERAGE_SHARE = 0.1  # weight of the newest sample in the average of response times
ESTIMATE_DECAY = 10.0  # seconds in which an estimate loses 63 % of its weight (linkerd)
FAILURE_PENALTY = 5.0  # seconds that a failure counts as, or one that fails fast would draw load
BUSY_DEFAULT = 1.0  # seconds for which an engine is spared that said 429 without Retry-After
BUSY_CAP = 300.0
MAX_CREDIT = 2.0  # requests that a warming engine may save up
ENGINE_FAULT_STATUS = frozenset((502, 503, 504))


class Outcome(Enum):
    """How an engine did with one request."""

    OK = "ok"
    ENGINE_FAULT = "engine_fault"  # connect, reset, invalid answer, 502/503/504, first byte late
    BUSY = "busy"  # it works, but has no room: 429, or 503 with Retry-After
    NEUTRAL = "neutral"  # says nothing about the engine: client left, client's fault


def verdict(status: int, retry_after: float | None) -> Outcome:
    """What an answer's status says of its engine; `retry_after` is None where it says none."""
    if status < 429:
        return Outcome.OK
    if status == 429 or (status == 503 and retry_after is not None):
        return Outcome.BUSY
    return Outcome.ENGINE_FAULT if status in ENGINE_FAULT_STATUS else Outcome.OK


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for every engine that does not say otherwise itself.

    Failures in a row that eject it (0 = never), requests at once, and the seconds over which it
    takes up its share of the load when it comes (back).
    """

    max_fails: int = 3
    max_concurrency: int = 256
    slow_start: float = 10.0


class EngineLoad:
    """Counters of one engine; they survive table changes, keyed by the service's name.

    `prefill_requests` and `prefill_bytes` count what was sent and has no first byte yet, and the
    bytes of the prompts in it. `credit` is what a warming engine may still take, in requests.
    """

    __slots__ = (
        "busy_until",
        "consecutive_failures",
        "credit",
        "ejected_until",
        "ejections",
        "error_count",
        "estimate",
        "estimated_at",
        "heard_at",
        "in_flight",
        "limit",
        "on_probation",
        "prefill_bytes",
        "prefill_requests",
        "request_count",
        "response_time",
        "warm_since",
    )

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self.prefill_requests = 0
        self.prefill_bytes = 0
        self.request_count = 0
        self.error_count = 0
        self.heard_at = 0.0  # when the last byte of an answer came
        self.response_time = 0.0  # seconds to the answer's head, moving average
        self.estimate = 0.0  # seconds to the first byte, 0 = not known yet
        self.estimated_at = 0.0
        self.consecutive_failures = 0
        self.ejected_until = 0.0
        self.ejections = 0
        self.on_probation = False
        self.busy_until = 0.0
        self.warm_since = -math.inf
        self.credit = 0.0

    def is_ejected(self, now: float) -> bool:
        """True while it must not get requests: ejected, or its one probation request is out."""
        if not self.ejected_until:
            return False
        return now < self.ejected_until or self.on_probation

    def is_full(self) -> bool:
        """True when it serves as many requests as it may."""
        return self.in_flight >= self.limit

    def is_busy(self, now: float) -> bool:
        """True while it asks for a pause."""
        return now < self.busy_until

    def latency(self, now: float) -> float:
        """Seconds to the first byte as expected now; what nothing is heard of fades."""
        return self.estimate * math.exp((self.estimated_at - now) / ESTIMATE_DECAY)

    def observe(self, seconds: float, now: float) -> None:
        """Take in a time to the first byte: a longer one counts at once, shorter ones by and by."""
        estimate = self.estimate
        if seconds < estimate:
            kept = math.exp((self.estimated_at - now) / ESTIMATE_DECAY)
            self.estimate = seconds + (estimate - seconds) * kept
        else:
            self.estimate = seconds
        self.estimated_at = now

    def warmth(self, now: float, slow_start: float) -> float:
        """The part of its share of the load that it may take: 1, or less while it is new."""
        age = now - self.warm_since
        return age / slow_start if age < slow_start else 1.0
