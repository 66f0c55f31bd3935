"""Is the engine alive? Judged by its progress. Pure: looks in, verdict out.

A busy engine may be slow to answer, and one that answers every question may have stopped to make
tokens.
"""

import enum
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """What /health calls `liveness`."""

    OK = "ok"
    BUSY = "busy"
    """It has work, or does not answer in time; as far as can be seen, tokens flow."""
    STALLED = "stalled"
    """Somebody waits, and no token has moved for too long."""
    DEAD = "dead"
    """It refuses connections, or says itself that its core is gone."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine's metrics say."""

    running: float
    waiting: float
    progress: tuple[float, ...]
    """Counters that move when tokens do."""

    @property
    def requests(self) -> float:
        """Everything that it has to do."""
        return self.running + self.waiting


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a running engine."""

    at: float
    answered: bool = True
    """Its models call was answered in time."""
    refused: bool = False
    """Nobody listens on its port."""
    unavailable: bool = False
    """Its health call answers 503 and is of the kind that means it."""
    load: Load | None = None
    """None: no metrics this time, or never."""
    hangs: bool = False
    """Its metrics, which it does have, did not come in time, and no load would be a reason."""
    clients: int = 0
    """Connections to its port."""
    untestable: bool = False
    """It was asked for one token and refused to: only its clients can tell whether it works."""


@dataclass(frozen=True, slots=True)
class Belief:
    """What the looks so far add up to."""

    verdict: Verdict = Verdict.OK
    moved_at: float | None = None
    """When tokens moved last, or nothing was there to be moved."""
    progress: tuple[float, ...] | None = None
    unavailable: bool = False
    requests: float = 0.0
    """Those that it had at the last look with metrics."""
    hung: bool = False
    """Its metrics did not come at the last look, for no good reason."""


def judge(before: Belief, look: Look, stalled_after: float) -> Belief:
    """The belief after one more look at the same run of an engine."""
    progress = look.load.progress if look.load else before.progress
    requests = look.load.requests if look.load else before.requests
    moved_at = look.at if before.moved_at is None or _moves(before, look) else before.moved_at
    verdict = _verdict(before, look, still_for=look.at - moved_at, stalled_after=stalled_after)
    return Belief(verdict, moved_at, progress, look.unavailable, requests, look.hangs)


def _moves(before: Belief, look: Look) -> bool:
    """Whether tokens have moved since the look before, or there is no reason why they should."""
    if look.load is None:
        return not (look.hangs or before.verdict is Verdict.STALLED)
    if look.load.progress != before.progress or look.load.requests <= 0:
        return True
    if before.verdict is Verdict.STALLED:
        return look.untestable and look.clients == 0
    # vLLM's gauges keep their last value when every client left at once (vllm issue 29928).
    return look.clients == 0


def _verdict(before: Belief, look: Look, *, still_for: float, stalled_after: float) -> Verdict:
    if look.refused or (look.unavailable and before.unavailable):
        return Verdict.DEAD
    # One answer that is late proves nothing.
    is_first_sign = look.hangs and not before.hung and before.verdict is not Verdict.STALLED
    if still_for >= stalled_after and not is_first_sign:
        return Verdict.STALLED
    has_work = look.load is not None and look.load.requests > 0 and look.clients > 0
    return Verdict.OK if look.answered and not has_work and not look.hangs else Verdict.BUSY
