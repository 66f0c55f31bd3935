"""Where requests wait while every engine that could serve them has as many as it may have.

First come, first served for each model. The place that a request leaves at an engine is handed to
the one that has waited longest among those whose model the engine serves, in the same step in
which it becomes free: nobody overtakes, and the engine's limit is never passed.
"""

import asyncio
import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from infinilm_router.router.load import InFlight, LoadBook
from infinilm_router.router.pace import Pace
from infinilm_router.router.selection import Choice, Nobody, Request, Rules, choose
from infinilm_router.router.table import TableStore
from infinilm_router.utils.errors import Code, RouterError

LOOK_AGAIN = 0.5  # seconds; what changes with time alone (an ejection ends) is seen by then
MAX_RETRY_AFTER = 60  # seconds

Place = tuple[Choice, InFlight]
"""A request's place at an engine, counted in already."""

Answer = Place | RouterError | None
"""What a waiting request is told; None: no engine is left that was not tried."""


class Waiter(Protocol):
    """Who waits: the request, the bytes that it keeps in memory, and how to tell it."""

    request: Request

    @property
    def size(self) -> int:
        """Bytes of its body."""

    def told(self, answer: Answer) -> None:
        """The wait is over. Must not call the room."""


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """Requests that may wait for a model, seconds for which they may, bytes of all of them."""

    size: int = 128
    timeout: float = 30.0
    bytes: int = 256 * 1024 * 1024


ROUND_ROBIN = Rules("round_robin")
USUAL = RoomLimits()


class Ticket:
    """A waiting request's place in its queue."""

    __slots__ = ("key", "number", "size", "waiter")

    def __init__(self, number: int, waiter: Waiter) -> None:
        self.number = number
        self.waiter = waiter
        self.size = waiter.size
        self.key = (waiter.request.model, waiter.request.tried)


Key = tuple[str | None, tuple[str, ...]]
"""Requests for the same model that tried the same engines can be served by the same ones."""


class WaitingRoom:
    """The queues of all models. Used on the event loop only."""

    def __init__(
        self,
        store: TableStore,
        book: LoadBook,
        rules: Rules = ROUND_ROBIN,
        limits: RoomLimits = USUAL,
    ) -> None:
        self._store = store
        self._book = book
        self._numbers = itertools.count()
        self._queues: dict[Key, dict[int, Ticket]] = {}
        self._bytes = 0
        self._paces: dict[str | None, Pace] = {}
        self.configure(rules, limits)
        book.on_free = self._freed

    def configure(self, rules: Rules, limits: RoomLimits) -> None:
        """Go by these settings from now on."""
        self._rules = rules
        self._last_rules = replace(rules, last_choice=True)
        self._limits = limits

    def lengths(self) -> Sequence[tuple[str | None, int]]:
        """The models for which requests wait (None: any), and how many."""
        lengths: dict[str | None, int] = {}
        for (model, _), queue in self._queues.items():
            lengths[model] = lengths.get(model, 0) + len(queue)
        return sorted(lengths.items(), key=lambda item: item[0] or "")

    def ask(self, waiter: Waiter, now: float) -> Place | Ticket | None:
        """A place at an engine, or in a queue; None when no engine is left that was not tried.

        Raises:
            RouterError: no engine serves the model, or too many requests wait already.
        """
        request, book = waiter.request, self._book
        if not request.tried:
            book.retries.requests += 1
        if not (book.waiting and (request.model, ()) in self._queues):
            place = self._place(request, now, self._rules)
            if place is not Nobody.FULL:
                return None if place is Nobody.TRIED else place
        return self._enter(waiter, now)

    def _place(self, request: Request, now: float, rules: Rules) -> Place | Nobody:
        book = self._book
        choice = choose(self._store.current, request, book, now, rules)
        if isinstance(choice, Choice):
            return choice, book.begin(choice.service, now, request.prompt_bytes)
        return choice

    def _enter(self, waiter: Waiter, now: float) -> Place | Ticket:
        limits, request = self._limits, waiter.request
        length = self._length(request.model)
        if length >= limits.size or self._bytes + waiter.size > limits.bytes:
            place = self._last_choice(request, now)
            if place is None:
                why = f"{length} requests wait already"
                raise self._refusal(Code.OVERLOADED, request.model, why, now)
            return place
        ticket = Ticket(next(self._numbers), waiter)
        self._queues.setdefault(ticket.key, {})[ticket.number] = ticket
        self._paces.setdefault(request.model, Pace(now))
        self._bytes += ticket.size
        self._book.waiting += 1
        return ticket

    def _length(self, model: str | None) -> int:
        return sum(len(queue) for (name, _), queue in self._queues.items() if name == model)

    def _last_choice(self, request: Request, now: float) -> Place | None:
        """Better an engine that asked for a pause than no answer at all."""
        try:
            place = self._place(request, now, self._last_rules)
        except RouterError:  # its model has gone a moment ago
            return None
        return None if isinstance(place, Nobody) else place

    def _refusal(self, code: Code, model: str | None, why: str, now: float) -> RouterError:
        """The error, with the time after which there is probably room again."""
        pace, limit = self._paces.get(model), self._limits.timeout
        rate = pace.rate(now) if pace else 0.0
        wait = min(limit, (self._length(model) + 1) / rate) if rate else limit
        seconds = min(max(math.ceil(wait), 1), MAX_RETRY_AFTER)
        engines = "All engines" if model is None else f"All engines of model '{model}'"
        return RouterError(
            code, f"{engines} are busy: {why}; try again in {seconds} s", retry_after=seconds
        )

    def leave(self, ticket: Ticket) -> None:
        """It waits no longer (or was told so already)."""
        queue = self._queues.get(ticket.key)
        if queue is None or queue.pop(ticket.number, None) is None:
            return
        if not queue:
            del self._queues[ticket.key]
            if not self._length(ticket.key[0]):
                del self._paces[ticket.key[0]]
        self._bytes -= ticket.size
        self._book.waiting -= 1

    def late(self, ticket: Ticket, now: float) -> Answer:
        """It has waited for as long as it may: what is told now."""
        request = ticket.waiter.request
        why = f"none had room within {self._limits.timeout:g} s"
        answer = self._last_choice(request, now) or self._refusal(
            Code.QUEUE_TIMEOUT, request.model, why, now
        )
        self.leave(ticket)
        return answer

    async def run(self, clock: Callable[[], float]) -> None:
        """Look again when the table has changed, and now and then; until cancelled."""
        table = self._store.current
        while True:
            with contextlib.suppress(TimeoutError):
                table = await asyncio.wait_for(self._store.changed(table), LOOK_AGAIN)
            self.look_again(clock())

    def look_again(self, now: float) -> None:
        """Serve whom engines that came, or have room again, can serve."""
        while self._serve_next(now):
            pass

    def _freed(self, now: float) -> None:
        """One request has left its engine, so one can be served."""
        self._serve_next(now)

    def _serve_next(self, now: float) -> bool:
        """Hand a place to the longest waiting that can be served; False when there is none."""
        heads = sorted((next(iter(queue.values())) for queue in self._queues.values()), key=_number)
        return any(self._serve_one(ticket, now) for ticket in heads)

    def _serve_one(self, ticket: Ticket, now: float) -> bool:
        try:
            answer: Answer | Nobody = self._place(ticket.waiter.request, now, self._rules)
        except RouterError as error:  # its model has gone
            answer = error
        if answer is Nobody.FULL:
            return False
        if isinstance(answer, tuple):
            self._paces[ticket.key[0]].count(now)
        self.leave(ticket)
        ticket.waiter.told(None if isinstance(answer, Nobody) else answer)
        return True


def _number(ticket: Ticket) -> int:
    return ticket.number
