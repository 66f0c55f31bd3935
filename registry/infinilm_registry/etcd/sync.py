"""Keeps the picture equal to what etcd holds: a whole read, a watch from there on, and checks.

A watch over the gateway is one endless answer, and its end of the line can go silent without a
word. So a small read that needs the majority of the members is made twice a second: while it is
answered, by the member that the watch is with, the picture is current. When any call finds that
member silent, the watch moves with the calls. Messages that a watch has lost (etcd 3.4 can lose
some after a compaction, and its connection alone may be dead) are found by reading everything now
and then; a watch that then stays silent is begun anew.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from infinilm_registry.etcd import wire
from infinilm_registry.etcd.client import EtcdClient, EtcdError, EtcdUnavailableError
from infinilm_registry.etcd.picture import Picture

LOG = logging.getLogger(__name__)
_JUDGE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: between checks, for one, between whole reads, of silence until stale, between tries.

    A watch whose member has fallen silent is left within the first two.
    """

    check: float = 0.5
    answer: float = 1.0
    compare: float = 30.0
    stale_after: float = 6.0
    retry: float = 0.3


class LostTrackError(Exception):
    """The watch no longer tells what happens: everything must be read again."""


class Sync:
    """The one who reads. `on_return` is called when contact is found again."""

    def __init__(
        self,
        client: EtcdClient,
        picture: Picture,
        pace: Pace,
        on_return: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._picture = picture
        self._pace = pace
        self._on_return = on_return
        self._clock = clock
        self._contact = -float("inf")
        self._told = asyncio.Event()  # set when the watch tells of a change
        self.known = False  # whether there has been a whole read at all
        self.problem = "etcd has not been read yet"  # the last one, for people

    async def run(self) -> None:
        """Follow etcd until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_for_ever())
            group.create_task(self._judge())

    async def read_all(self) -> int:
        """Make the picture what etcd holds; the revision of that.

        Raises:
            EtcdUnavailableError: no member can tell.
            EtcdError: etcd refuses.
            LostTrackError: it has lost its data and begun anew; its revisions count from there.
        """
        revision, _ = await self._compare()
        return revision

    async def _compare(self) -> tuple[int, int]:
        """The same; also how many registrations were others than in the picture."""
        everything = wire.prefix_range(self._picture.place.prefix)
        asked = self._picture.seen
        answer = await self._client.call("/kv/range", everything)
        revision = wire.revision_of(answer)
        differing = self._picture.take_all(wire.read_keys(answer), revision, asked)
        if differing:
            LOG.info("etcd read differing=%d revision=%d", differing, revision)
        self.known = True
        self._touch()
        if revision < asked:
            raise LostTrackError(f"etcd has begun anew at revision {revision}, after {asked}")
        return revision, differing

    def _touch(self) -> None:
        """Etcd has answered, and the picture is what it says."""
        self._contact, table = self._clock(), self._picture.table
        returned = table.stale
        table.set_stale(stale=False)
        self._picture.hold()
        if returned:
            LOG.info("etcd answers services=%d", len(table))
            self._on_return()

    async def _follow_for_ever(self) -> None:
        while True:
            try:
                # In a task of its own: a group that fails leaves its task counted as cancelled in
                # Python before 3.11.3, where the next timeout in that task would then end it.
                await asyncio.create_task(self._follow())
            except* (EtcdUnavailableError, EtcdError, LostTrackError) as errors:
                self.problem = str(errors.exceptions[0])
                if not self._picture.table.stale:
                    LOG.info("reading etcd again reason=%r", self.problem)
            await asyncio.sleep(self._pace.retry)

    async def _follow(self) -> None:
        """Read, then watch and check until one of them fails."""
        revision = await self.read_all()
        async with asyncio.TaskGroup() as group:
            endpoint = self._client.endpoint
            group.create_task(self._watch(endpoint, revision + 1))
            group.create_task(self._leave_with_calls(endpoint))
            group.create_task(self._check())

    async def _watch(self, endpoint: str, start: int) -> None:
        create = {**wire.prefix_range(self._picture.place.prefix), "start_revision": str(start)}
        async with aclosing(self._client.watch(endpoint, {"create_request": create})) as messages:
            async for message in messages:
                if message.get("canceled"):
                    raise LostTrackError(f"{endpoint} ended the watch: {_why(message)}")
                changes = list(wire.read_changes(message))
                if changes:
                    self._told.set()
                self._picture.take_watched(changes, wire.revision_of(message))
        raise LostTrackError(f"{endpoint} ended the watch")

    async def _leave_with_calls(self, endpoint: str) -> None:
        await self._client.left(endpoint)
        raise LostTrackError(f"{endpoint} does not answer in time")

    async def _check(self) -> None:
        compare_at = self._clock() + self._pace.compare
        probe = {"key": wire.text(self._picture.place.prefix), "count_only": True}
        while True:
            await asyncio.sleep(self._pace.check)
            if self._clock() >= compare_at:
                _, differing = await self._compare()
                if differing:
                    await self._expect_word()
                compare_at = self._clock() + self._pace.compare
            else:
                await self._client.call("/kv/range", probe, self._pace.answer)
                self._touch()

    async def _expect_word(self) -> None:
        """Have a watch that says no more given up: we have just read what it has not told of.

        One that was overtaken by the read tells of it now. Another one's connection may be dead,
        without an end that could be seen.
        """
        self._told.clear()
        try:
            async with asyncio.timeout(self._pace.answer):
                await self._told.wait()
        except TimeoutError:
            raise LostTrackError("the watch does not tell what is read") from None

    async def _judge(self) -> None:
        """Have the table say so when etcd has not been heard of for too long."""
        while True:
            table, silent = self._picture.table, self._clock() - self._contact
            if silent > self._pace.stale_after and not table.stale:
                LOG.warning("etcd does not answer, going on from memory reason=%r", self.problem)
                table.set_stale(stale=True)
            await asyncio.sleep(_JUDGE_SECONDS)


def _why(message: wire.Json) -> str:
    if "compact_revision" in message:
        return f"what it should tell is compacted, up to {message['compact_revision']}"
    return str(message.get("cancel_reason", "no reason given"))
