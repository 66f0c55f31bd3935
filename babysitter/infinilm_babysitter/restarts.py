"""When to start an ended engine again: a pure decision over times passed in."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from infinilm_babysitter.states import State

JITTER = 0.2
"""Every delay is varied by up to this part, so that engines that died together do not return so."""


@dataclass(frozen=True, slots=True)
class RestartRules:
    """Numbers are seconds where not said otherwise."""

    first_delay: float = 1.0
    max_delay: float = 60.0
    stable_after: float = 600.0
    """An engine that was ready this long starts with a clean record."""
    max_restarts: int = 10000
    """Restarts allowed in a row without a stable period; 0: never restart."""
    crash_exits: int = 5
    crash_window: float = 600.0


@dataclass(frozen=True, slots=True)
class Decision:
    """The next state and how long to stay in it (meaningless for FAILED)."""

    state: State
    delay: float


class RestartPolicy:
    """Doubling delays with a memory of recent ends."""

    def __init__(
        self, rules: RestartRules, vary: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._rules = rules
        self._vary = vary
        self._exits: deque[float] = deque()
        self._in_a_row = 0
        self.total = 0
        """Restarts since the babysitter began."""

    def after_exit(self, now: float, ready_for: float, *, planned: bool = False) -> Decision:
        """Decide after an end at `now` of an engine that had been ready for `ready_for` seconds.

        `planned`: the engine ended itself to recover, which is no sign of a broken engine.
        """
        rules = self._rules
        if ready_for >= rules.stable_after:
            self.forget()
        if self._in_a_row >= rules.max_restarts:
            return Decision(State.FAILED, 0.0)
        exponent = 0 if planned else self._in_a_row
        self.total += 1
        self._in_a_row += 1
        if not planned:
            self._exits.append(now)
        delay = min(rules.first_delay * 2.0 ** min(exponent, 32), rules.max_delay)
        state = State.CRASHLOOP if self._is_crashing(now) else State.BACKOFF
        return Decision(state, delay * self._vary(1 - JITTER, 1 + JITTER))

    def forget(self) -> None:
        """Begin with a clean record."""
        self._in_a_row = 0
        self._exits.clear()

    def _is_crashing(self, now: float) -> bool:
        while self._exits and now - self._exits[0] > self._rules.crash_window:
            self._exits.popleft()
        return len(self._exits) >= self._rules.crash_exits
