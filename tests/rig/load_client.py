"""A load client on asyncio: closed-loop or at fixed times, with an outcome for every call."""

import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from rig.engine_script import Json
from rig.raw_client import request_bytes
from rig.wire import BodyReader, Head, Headers, WireError, response_framing, status_line, take_head

Kind = Literal["ok", "explained", "unexplained"]
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Call:
    """One request to send."""

    target: str
    body: bytes
    headers: Headers = ()
    method: str = "POST"


@dataclass
class Outcome:
    """What came of one call (times: seconds since it was due)."""

    call: Call
    due: float
    head: Head | None = None
    body: BodyReader | None = None
    fault: str = ""
    first_byte: float = 0.0
    ended: float = 0.0
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # when, how much body by then

    @property
    def status(self) -> int:
        return status_line(self.head)[1] if self.head else 0

    @property
    def data(self) -> bytes:
        return bytes(self.body.data) if self.body else b""

    @property
    def whole(self) -> bool:
        return bool(self.body and self.body.whole)

    @property
    def events(self) -> list[bytes]:
        """The `data` of every event, comments left out."""
        lines = self.data.split(b"\n")
        return [line[6:] for line in lines if line.startswith(b"data: ")]

    @property
    def event_times(self) -> list[float]:
        """When each event was whole: what arrived in one piece did so at one time."""
        ends = [match.end() for match in re.finditer(rb"\n\n", self.data)]
        return [next(when for when, size in self.arrivals if size >= end) for end in ends]

    @property
    def stream_error(self) -> Json | None:
        """The error event with which a cut stream ended, if it did so as promised."""
        last = self.events[-1] if self.events else b""
        value = json.loads(last) if last.startswith(b'{"error"') else {}
        error: Json = value.get("error", {})
        promised = {"message", "type", "code"} <= set(error)
        return error if promised and not self.whole and DONE not in self.data else None

    @property
    def kind(self) -> Kind:
        """ok: whole and no error; explained: one of the router's own errors; else unexplained."""
        if self.stream_error:
            return "explained"
        if not self.whole or not self.head:
            return "unexplained"
        if self.status < 400:
            cut = b"event-stream" in (self.head.get("content-type") or "").encode()
            return "unexplained" if cut and not self.data.endswith(DONE) else "ok"
        return "explained" if self.head.get("x-infinilm-error") else "unexplained"


class LoadClient:
    """Keeps connections between calls; a new one is made when none is idle."""

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._timeout = timeout
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def closed_loop(self, calls: Sequence[Call], concurrency: int) -> list[Outcome]:
        """All calls, `concurrency` at a time."""
        waiting = list(enumerate(calls))[::-1]
        done: list[Outcome | None] = [None] * len(calls)

        async def worker() -> None:
            while waiting:
                index, call = waiting.pop()
                done[index] = await self.send(call, time.monotonic())

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return [outcome for outcome in done if outcome]

    async def open_loop(self, calls: Sequence[Call], rate: float) -> list[Outcome]:
        """Calls sent at fixed times, `rate` a second, whatever became of those before."""
        start = time.monotonic()
        tasks = []
        for index, call in enumerate(calls):
            due = start + index / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(self.send(call, due)))
        return list(await asyncio.gather(*tasks))

    async def send(self, call: Call, due: float) -> Outcome:
        """One call, whatever happens to it."""
        outcome = Outcome(call, due)
        try:
            async with asyncio.timeout(self._timeout):
                await self._exchange(outcome)
        except TimeoutError:
            outcome.fault = f"silent for {self._timeout} s"
        except (OSError, EOFError, WireError) as error:
            outcome.fault = f"{type(error).__name__}: {error}"
        outcome.ended = time.monotonic() - due
        return outcome

    async def _exchange(self, outcome: Outcome) -> None:
        call = outcome.call
        reader, writer = await self._connection()
        keep = False
        try:
            writer.write(request_bytes(call.method, call.target, call.headers, call.body))
            await _read_answer(reader, outcome)
            keep = outcome.whole and (
                outcome.head is None or outcome.head.get("connection") != "close"
            )
        finally:
            if keep and not reader.at_eof():
                self._idle.append((reader, writer))
            else:
                await _close(writer)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """An idle connection that the other side has not closed meanwhile, or a new one."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            await _close(writer)
        return await asyncio.open_connection(*self._address, limit=1 << 20)

    async def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            await _close(self._idle.pop()[1])


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _read_answer(reader: asyncio.StreamReader, outcome: Outcome) -> None:
    data = b""
    while (taken := take_head(data)) is None:
        if not (more := await reader.read(1 << 16)):
            raise EOFError(f"connection ended before the answer, after {data!r}")
        data += more
    outcome.first_byte = time.monotonic() - outcome.due
    outcome.head, size = taken
    outcome.body = BodyReader(response_framing(outcome.head, outcome.call.method))
    more = data[size:]
    while True:
        outcome.body.feed(more)
        outcome.arrivals.append((time.monotonic() - outcome.due, len(outcome.body.data)))
        if outcome.body.whole:
            return
        if not (more := await reader.read(1 << 16)):
            outcome.body.end()
            return


def chat_call(model: str = "m", *, script: Json | None = None, **fields: object) -> Call:
    """A chat call; `script` tells a fake engine what to do."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    headers: Headers = (("Content-Type", "application/json"),)
    if script is not None:
        headers = (*headers, ("x-fake-script", json.dumps(script)))
    return Call("/v1/chat/completions", json.dumps(body).encode(), headers)


def kinds(outcomes: Sequence[Outcome]) -> Counter[Kind]:
    """How many outcomes there are of each kind."""
    return Counter(outcome.kind for outcome in outcomes)
