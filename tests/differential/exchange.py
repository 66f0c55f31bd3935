"""Send one exchange through one router and note everything that came of it."""

import asyncio
import re
from dataclasses import dataclass, field, replace
from typing import cast

from differential.engine import Engine, Received, Script
from rig.wire import BodyReader, Headers, WireError, response_framing, status_line, take_head

SPLIT_PAUSE = 0.0005
PATIENCE = 8.0  # longer than every limit of the routers
SENTINEL = (
    b"GET /sentinel HTTP/1.1\r\nHost: s\r\nConnection: close\r\nX-Request-Id: sentinel\r\n\r\n"
)


@dataclass(frozen=True)
class Exchange:
    """What a client sends on one connection, and what the engine answers to each request.

    `methods` are those of the requests in `pieces`: how an answer ends depends on them.
    """

    pieces: tuple[bytes, ...]
    methods: tuple[str, ...]
    scripts: tuple[Script, ...] = ()

    @property
    def wire(self) -> bytes:
        return b"".join(self.pieces)


@dataclass(frozen=True)
class Answer:
    """One answer as the client saw it. `whole` is False when it broke off."""

    start: str
    headers: Headers
    body: bytes
    framing: str
    whole: bool


@dataclass(frozen=True)
class Outcome:
    """All that must be equal: the answers, what was no answer, the end, what the engine got.

    `end`: "closed" (in order), "reset", or "open" when nothing happened for `PATIENCE` seconds.
    The request behind the exchange (`SENTINEL`) tells whether the connection lived on.
    """

    answers: tuple[Answer, ...]
    rest: bytes
    end: str
    received: tuple[Received, ...]


@dataclass
class _Client(asyncio.Protocol):
    methods: list[str]
    answers: list[Answer] = field(default_factory=list)
    held: bytes = b""
    end: str = "open"
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    _head: tuple[str, Headers] | None = None
    _body: BodyReader = field(default_factory=lambda: BodyReader(0))
    lost_track: bool = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.held += data
        try:
            while not self.lost_track and self._step():
                pass
        except WireError:
            self.lost_track = True
        self.grown.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end = "reset" if isinstance(exc, ConnectionError) else "closed"
        if self._head is not None:
            if self.end == "closed":
                self._body.end()
            self._note()
        elif self.answers and self.held:
            self._take_unasked_body()
        self.grown.set()

    def _take_unasked_body(self) -> None:
        """A refusal of a HEAD that could not be trusted has a body."""
        last = self.answers[-1]
        if ("Content-Length", str(len(self.held))) in last.headers:
            self.answers[-1] = replace(last, body=self.held)
            self.held = b""

    def _step(self) -> bool:
        """Take a head or a body; False when more bytes are needed."""
        if self._head is None:
            taken = take_head(self.held)
            if taken is None:
                return False
            head, size = taken
            status = status_line(head)[1]
            method = self.methods[0] if self.methods else "GET"
            self._body = BodyReader(response_framing(head, method))
            self._head = head.start, head.headers
            if status >= 200 and self.methods:
                del self.methods[0]
            self.held = self.held[size:]
        self.held = self._body.feed(self.held)
        if self._body.whole:
            self._note()
        return bool(self.held) and self._head is None

    def _note(self) -> None:
        assert self._head
        framing = self._body.framing if isinstance(self._body.framing, str) else "sized"
        body = bytes(self._body.data)
        self.answers.append(Answer(*self._head, body, framing, self._body.whole))
        self._head = None

    def finals(self) -> int:
        return sum(not answer.start.startswith("HTTP/1.1 1") for answer in self.answers)


async def run_exchange(url: str, engine: Engine, exchange: Exchange, settle: float) -> Outcome:
    """One exchange on a connection of its own."""
    engine.begin(exchange.scripts, settle)
    host, _, port = url.removeprefix("http://").partition(":")
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(
        lambda: _Client(list(exchange.methods)), host, int(port)
    )
    try:
        async with asyncio.timeout(PATIENCE):
            await _talk(client, exchange)
    except TimeoutError:
        pass
    finally:
        client.transport.abort()
        await asyncio.sleep(0)  # for the abort to be done
    received = tuple(engine.received)
    return comparable(
        exchange, engine, Outcome(tuple(client.answers), client.held, client.end, received)
    )


async def _talk(client: _Client, exchange: Exchange) -> None:
    for index, piece in enumerate(exchange.pieces):
        if index:
            await asyncio.sleep(SPLIT_PAUSE)
        if client.transport.is_closing():
            break
        client.transport.write(piece)
    asked = False
    while client.end == "open":
        if not asked and (client.lost_track or client.finals() >= len(exchange.methods)):
            asked = True
            client.transport.write(SENTINEL)
        client.grown.clear()
        await client.grown.wait()


NEW_ID = re.compile(r"[0-9a-f]{8,40}(?:-[0-9a-f]+)*\Z")
UNREAD_ID = re.compile(r"x-request-id: (\S+)")
MESSAGE = re.compile(rb'"message":"(?:[^"\\]|\\.)*"')
VIA = re.compile(r"(1\.1 infinilm-)[0-9a-f]{8}\Z")


def comparable(exchange: Exchange, engine: Engine, outcome: Outcome) -> Outcome:
    """Without what must differ: the engine's port, the router's id, ids made up for requests."""
    changes = [(f"127.0.0.1:{engine.port}", "ENGINE")]
    unread = [
        ("x-request-id", value) for value in UNREAD_ID.findall(outcome.rest.decode("latin-1"))
    ]
    pairs = [*unread, *(pair for answer in outcome.answers for pair in answer.headers)]
    for name, value in pairs:
        made_up = name.lower() == "x-request-id" and value.encode("latin-1") not in exchange.wire
        if made_up and value != "sentinel":
            changes.append((value, "NEW-ID" if NEW_ID.match(value) else f"ODD-ID {value}"))

    def text(value: str) -> str:
        for old, new in changes:
            value = value.replace(old, new)
        return value

    def data(value: bytes) -> bytes:
        return text(value.decode("latin-1")).encode("latin-1")

    return replace(
        outcome,
        answers=tuple(
            replace(
                answer,
                headers=tuple(
                    sorted(
                        (name, text(value))
                        for name, value in answer.headers
                        if name.lower() != "date"
                    )
                ),
                body=data(answer.body),
            )
            for answer in outcome.answers
        ),
        rest=data(outcome.rest),
        received=tuple(
            Received(tuple(_line(text(line)) for line in got.lines), got.body)
            for got in outcome.received
        ),
    )


def _line(line: str) -> str:
    return VIA.sub(r"\1ID", line) if line.startswith("Via: ") else line


MALFORMED = b"malformed head: "


def differences(first: Outcome, second: Outcome) -> list[str]:
    """What is not equal, one line each."""
    found = [
        f"{name}: {getattr(first, name)!r} / {getattr(second, name)!r}"
        for name in ("rest", "end")
        if getattr(first, name) != getattr(second, name)
    ]
    answers = list(zip(first.answers, second.answers, strict=False))
    requests = list(zip(first.received, second.received, strict=False))
    if len(answers) != max(len(first.answers), len(second.answers)):
        found.append(f"answers: {first.answers!r} / {second.answers!r}")
    if len(requests) != max(len(first.received), len(second.received)):
        found.append(f"received: {first.received!r} / {second.received!r}")
    for one, other in map(without_detail, answers):
        found += _unequal_fields(one, other)
    for got, other_got in requests:
        found += _unequal_fields(got, other_got)
    return found


def _unequal_fields(one: Answer | Received, other: Answer | Received) -> list[str]:
    pairs = [(key, value, getattr(other, key)) for key, value in vars(one).items()]
    return [f"{key}: {left!r} / {right!r}" for key, left, right in pairs if left != right]


def _is_bare_error(answer: Answer) -> bool:
    """An error in answer to a HEAD: only its length tells which words it would have."""
    return not answer.body and any(name == "x-infinilm-error" for name, _ in answer.headers)


def without_detail(pair: tuple[Answer, Answer]) -> tuple[Answer, Answer]:
    """Allowed difference: in which words, and of several faults in a head which, is told.

    The two use different parsers for field lines, with texts of their own. Status, code and all
    else that a program could act on must be equal.
    """
    if not any(MALFORMED in answer.body or _is_bare_error(answer) for answer in pair):
        return pair
    first, second = (
        replace(
            answer,
            headers=tuple(item for item in answer.headers if item[0] != "Content-Length"),
            body=MESSAGE.sub(b"", answer.body),
        )
        for answer in pair
    )
    return first, second
