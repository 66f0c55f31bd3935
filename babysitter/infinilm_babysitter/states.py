"""The states of an engine and the moves between them."""

import enum
import logging
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class State(enum.StrEnum):
    """What the engine is doing, as /health tells it."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    BACKOFF = "backoff"
    """Ended or could not start; the next attempt comes after a wait."""
    CRASHLOOP = "crashloop"
    """As backoff, after too many ends in a short time."""
    FAILED = "failed"
    """No restarts are left; waits to be stopped, or for an order to try again."""


MOVES: Mapping[State, frozenset[State]] = {
    State.STOPPED: frozenset({State.STARTING, State.BACKOFF}),
    State.STARTING: frozenset(
        {State.READY, State.BACKOFF, State.CRASHLOOP, State.FAILED, State.DRAINING}
    ),
    State.READY: frozenset({State.BACKOFF, State.CRASHLOOP, State.FAILED, State.DRAINING}),
    State.BACKOFF: frozenset({State.STARTING, State.STOPPED}),
    State.CRASHLOOP: frozenset({State.STARTING, State.STOPPED}),
    State.FAILED: frozenset({State.STARTING, State.STOPPED}),
    State.DRAINING: frozenset(
        {State.READY, State.BACKOFF, State.CRASHLOOP, State.FAILED, State.STOPPED}
    ),
}


class IllegalMoveError(RuntimeError):
    """A move that MOVES does not allow: a fault of the program, not of the engine."""


class EngineState:
    """The current state, since when, and a sentence on why; changed in one place only."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.state = State.STOPPED
        self.since = clock()
        self.detail = ""

    @property
    def seconds(self) -> float:
        """How long the current state has lasted."""
        return self._clock() - self.since

    def change_state(self, new: State, detail: str = "") -> None:
        """Move to `new`. Raises IllegalMoveError if the table has no such move."""
        if new not in MOVES[self.state]:
            raise IllegalMoveError(f"an engine cannot go from {self.state} to {new}")
        log.info("engine state=%s was=%s detail=%r", new, self.state, detail)
        self.state, self.since, self.detail = new, self._clock(), detail

    def note(self, detail: str) -> None:
        """Say something new about the current state; logged when it differs from the last."""
        if detail != self.detail:
            log.info("engine state=%s detail=%r", self.state, detail)
            self.detail = detail
