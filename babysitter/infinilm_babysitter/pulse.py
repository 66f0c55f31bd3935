"""Takes the looks at one run of an engine that its liveness is judged by."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from infinilm_babysitter.door import Door
from infinilm_babysitter.liveness import Belief, Load, Look, Verdict, judge
from infinilm_babysitter.meter import Meter, NoLoad
from infinilm_babysitter.readiness import Finding, NotReady


@dataclass(frozen=True, slots=True)
class Measured:
    """What one look found beside the readiness."""

    load: Load | None = None
    hangs: bool = False
    clients: int = 0
    untestable: bool = False


class Pulse:
    """Liveness of one run, look by look."""

    def __init__(
        self, door: Door, stalled_after: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._door = door
        self._meter = Meter(door)
        self._stalled_after = stalled_after
        self._clock = clock
        self.belief = Belief()

    @property
    def metrics(self) -> str | None:
        """The kind of metrics that are read; None: none so far."""
        return self._meter.dialect.name if self._meter.dialect else None

    async def measure(self, model: str) -> Measured | None:
        """Ask the engine for its metrics, and a stalled one for a token of `model` as well.

        None: that could not be done, which says nothing of the engine.
        """
        try:
            return await self._measure(model)
        except OSError:
            return None

    async def _measure(self, model: str) -> Measured:
        untestable = False
        clients = await self._door.clients()
        if self.belief.verdict is Verdict.STALLED:
            untestable = not await self._meter.try_one_token(model)
        load = await self._meter.read()
        if isinstance(load, Load):
            return Measured(load, clients=clients, untestable=untestable)
        hangs = load is NoLoad.SILENT and self._meter.must_answer(clients)
        return Measured(hangs=hangs, clients=clients, untestable=untestable)

    def take(self, finding: Finding, measured: Measured | None) -> Belief:
        """The verdict after one more look."""
        problem = finding if isinstance(finding, NotReady) else None
        if measured is None or (problem and problem.unseen):
            return self.belief
        look = Look(
            at=self._clock(),
            answered=problem is None or problem.answered,
            refused=problem is not None and problem.refused,
            unavailable=problem is not None and problem.unavailable,
            load=measured.load,
            hangs=measured.hangs,
            clients=measured.clients,
            untestable=measured.untestable,
        )
        self.belief = judge(self.belief, look, self._stalled_after)
        return self.belief
