"""One request on its way to an engine: choose, connect, send, and follow the answer to its end.

An `Exchange` lives from the moment the request is whole until its one outcome. It is driven by
callbacks of the two connections and by its deadline; nothing waits in a task but connecting.
"""

import asyncio
import math
import random
from typing import TYPE_CHECKING, Final

from infinilm_router.proxy import ends
from infinilm_router.proxy.bodies import BodyReader, UntilClose, response_body
from infinilm_router.proxy.deadlines import set_deadline
from infinilm_router.proxy.heads import MAX_RESPONSE_HEAD, Broken, RequestHead, ResponseHead
from infinilm_router.proxy.pool import UpstreamConnection
from infinilm_router.proxy.relay import JOIN_UP_TO, Relay, has_content
from infinilm_router.router.engine import EngineLoad, Outcome
from infinilm_router.router.load import InFlight
from infinilm_router.router.queue import Answer, Place, Ticket
from infinilm_router.router.selection import Choice, Request, explain
from infinilm_router.router.table import Service
from infinilm_router.utils.errors import CLIENT_CLOSED, CLIENT_ENDS, ENGINE_ERROR, Code, RouterError

if TYPE_CHECKING:
    from infinilm_router.proxy.server import ClientConnection

MAX_ATTEMPTS: Final = 2
RETRY_JITTER: Final = 0.025  # seconds; spreads the retries of a burst
NO_REQUEST: Final = Request()
RETRY_ON_RESET: Final = "reset-before-headers"


class Exchange:
    """A proxied request and its answer."""

    # Class-level defaults: an exchange sets only what happens to it.
    first_byte_at: float | None = None
    phase = "choose"
    attempts = 0
    choice: Choice | None = None
    ended = False
    request = NO_REQUEST
    _failed: ends.FailedAttempt | None = None
    ticket: Ticket | None = None
    _in_flight: InFlight | None = None
    _load: EngineLoad  # of the engine it is at
    _outcome = Outcome.OK
    _connecting: asyncio.Task[None] | None = None
    _retry: asyncio.TimerHandle | None = None
    _upstream: UpstreamConnection | None = None
    _buffer = b""
    response: ResponseHead | None = None
    reader: BodyReader | None = None
    _content_awaited = False  # of a stream whose head is here
    stream_end = math.inf  # when a stream has lasted for as long as it may
    paused = False

    def __init__(self, client: "ClientConnection", head: RequestHead, body: bytes) -> None:
        self._client = client
        self.gateway = gateway = client.gateway
        self.head = head
        self._body = body
        self.request_id = head.request_id or gateway.new_request_id()
        self.relay = Relay(client, head, keep_alive=client.may_keep_alive(head))
        self.started = self.last_activity = gateway.queue.now()
        self.deadline = client.exchange_deadline

    # Towards the engine

    @property
    def size(self) -> int:
        """Bytes that it keeps in memory while it waits."""
        return len(self._body)

    def attempt(self) -> None:
        """Find a place for `request` at an engine, or wait for one."""
        gateway = self.gateway
        try:
            found = gateway.room.ask(self, gateway.queue.now())
        except RouterError as error:
            if error.code is Code.OVERLOADED:
                self.phase = "queue"
            self._no_place(error)
            return
        if isinstance(found, tuple):
            self._take(found)
            self._send()
        elif found is None:
            self._no_place(None)
        else:
            self._wait(found)

    def _no_place(self, error: RouterError | None) -> None:
        """No engine takes it. What is told after an attempt that failed is why that one did."""
        failed, self._failed = self._failed, None
        if failed is not None:
            self.phase, error = failed.phase, failed.error
        assert error is not None  # the first attempt has tried nobody
        self.abort(error)

    def _wait(self, ticket: Ticket) -> None:
        self.phase = "queue"
        self.ticket = ticket
        self.last_activity = self.gateway.queue.now()
        set_deadline(self)

    def told(self, answer: Answer) -> None:
        """The wait is over. Goes on in the loop's next turn: this one is another exchange's."""
        self.ticket = None
        self.deadline.clear()
        if isinstance(answer, tuple):
            self._take(answer)
            self.gateway.loop.call_soon(self._send_later)
        else:
            self.gateway.loop.call_soon(self._no_place, answer)

    def _take(self, place: Place) -> None:
        if self._failed is not None:
            self._tell_failed_attempt()
        self.choice, self._in_flight = place
        self._load = self._in_flight.load
        self.attempts += 1

    def _send_later(self) -> None:
        if not self.ended:  # it may have left meanwhile
            self._send()

    def _send(self) -> None:
        """Send the request to the engine that was chosen."""
        assert self.choice is not None
        service = self.choice.service
        connection = self.gateway.pool.checkout(service.address)
        if connection is not None:
            self._send_on(connection, service)
        else:
            self.phase = "connect"
            self._connecting = self.gateway.loop.create_task(self._connect(service))

    async def _connect(self, service: Service) -> None:
        try:
            connection = await self.gateway.pool.connect(service.address)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that can't be one
            self._connecting = None
            self._leave_engine(ends.blame(error))
            self._retry_or_fail(ends.connect_failed(service, error))
        else:
            self._connecting = None
            self._send_on(connection, service)

    def _retry_or_fail(self, error: RouterError) -> None:
        """Try one more engine when the budget allows it."""
        gateway = self.gateway
        assert self.choice is not None
        service = self.choice.service
        self.deadline.clear()  # it was this attempt's
        self.request.tried += (service.name,)
        if self.attempts < MAX_ATTEMPTS and gateway.book.retries.take(gateway.queue.now()):
            delay = random.uniform(0, RETRY_JITTER)  # noqa: S311 - no secret depends on it
            self._failed = ends.FailedAttempt(service, self.attempts, self.phase, error)
            self._retry = gateway.loop.call_later(delay, self.attempt)
        else:
            self._fail(error)

    def _send_on(self, connection: UpstreamConnection, service: Service) -> None:
        self._upstream = connection
        connection.user = self
        gateway, body = self.gateway, self._body
        head = gateway.upstream_head(self._client, self, service, len(body))
        if len(body) <= JOIN_UP_TO:
            connection.transport.write(head + body)
        else:
            connection.transport.writelines((head, body))
        self.phase = "send" if connection.sending else "first_byte"
        self.last_activity = gateway.queue.now()
        if self.request.stream:
            set_deadline(self)
        else:
            gateway.queue.set(self.deadline, gateway.config.response_timeout)
        if self._client.write_paused:
            self.pause()

    # From the engine

    def upstream_sent(self) -> None:
        """The engine's socket has taken all of the request."""
        if self.phase == "send":
            self.phase = "first_byte"

    def upstream_data(self, data: bytes) -> None:
        """Bytes from the engine: the head first, then the body."""
        self._load.heard_at = self.last_activity = self.gateway.queue.now()
        if self.reader is None:
            self._head_data(self._buffer + data if self._buffer else data)
        else:
            self._body_data(data)

    def _head_data(self, data: bytes) -> None:
        assert self._upstream is not None
        while True:
            end = data.find(b"\r\n\r\n", 0, MAX_RESPONSE_HEAD) + 4
            try:
                if end < 4:
                    ends.check_partial_head(data)
                    self._buffer = data
                    return
                head, length = self._upstream.heads.read(data[:end])
            except Broken as fault:
                self.engine_broke(Code.UPSTREAM_INVALID, str(fault))
                return
            data = data[end:]
            if head.status >= 200:
                break
        self._buffer = b""
        self._begin_answer(head, length, data)

    def _begin_answer(self, head: ResponseHead, length: int | None, data: bytes) -> None:
        now = self.last_activity
        assert self._in_flight is not None
        self.first_byte_at = now
        self._outcome = self._in_flight.answered(
            head.status, head.retry_after, stream=head.event_stream, now=now
        )
        self.response = head
        self._body = b""  # it may be large, and is not sent again
        self.phase = "stream"
        if head.event_stream:
            self._content_awaited = True
            if limit := self.gateway.config.stream_timeout:
                self.stream_end = now + limit
        elif (
            length == len(data)
            and head.status == 200
            and not (self.head.bodyless or self.relay.started)
        ):
            self.relay.send_whole(head, self.own_fields(), data)  # as usual, it came at once
            self._complete(clean=True)
            return
        self.reader = response_body(head, length, self.head.method)
        if self.relay.started and not (head.event_stream and head.status == 200):
            self._leave_engine(self._outcome)  # its status says whether the engine is to blame
            text = f"it answered {head.status} after the stream to the client had begun"
            self._fail(self._bad_gateway(Code.UPSTREAM_INVALID, text))
            return
        self._body_data(data, length)
        if not self.ended:
            set_deadline(self)

    def _body_data(self, data: bytes, length: int | None = None) -> None:
        """Relay what came of the body, behind the head when that has not gone out yet."""
        reader = self.reader
        assert reader is not None
        payload, rest = reader.feed(data) if data else (b"", b"")
        if self._content_awaited and has_content(payload):
            assert self._in_flight is not None
            self._content_awaited = False
            self._in_flight.first_byte(self.last_activity)
        if self.relay.started:
            self.relay.feed(payload)
        else:
            assert self.response is not None
            self.relay.start(self.response, length, self.own_fields(), payload)
        if reader.fault:
            self.engine_broke(Code.UPSTREAM_INVALID, reader.fault)
        elif reader.done:
            self._complete(clean=not rest)

    def _complete(self, *, clean: bool) -> None:
        """The body's end has come; `clean` = the connection can be used again."""
        assert self.response is not None
        assert self.choice is not None
        service, relay = self.choice.service, self.relay
        if not (relay.looks_complete() or service.metadata.get("stream_end") == "close"):
            self.engine_broke(Code.UPSTREAM_RESET, "the stream ended without [DONE]")
            return
        self._leave_engine(self._outcome, keep=clean and self.response.keep_alive())
        if relay.status >= 500:
            self.phase = "first_byte"  # its head said so
            self._end(ENGINE_ERROR, f"engine '{service.name}' answered {relay.status}")
        else:
            self._end(None)
        self._client.exchange_done(keep_alive=relay.finish())

    def upstream_lost(self, error: Exception | None) -> None:
        """The engine's connection ended before the answer did (or the answer ends with it)."""
        self._upstream = None
        if isinstance(self.reader, UntilClose) and error is None:
            self.reader.done = True
            self._complete(clean=False)
            return
        before_head = self.reader is None
        detail = "it closed the connection " + (
            "before it answered" if before_head else "before the end of its answer"
        )
        nothing_came = before_head and not self.relay.started and not self._buffer
        if nothing_came and RETRY_ON_RESET in self.gateway.config.retry_on:
            self._leave_engine(Outcome.ENGINE_FAULT)
            self._retry_or_fail(self._bad_gateway(Code.UPSTREAM_RESET, detail))
        else:
            self.engine_broke(Code.UPSTREAM_RESET, detail)

    # Ends

    def pause(self) -> None:
        """The client takes no more: slow the engine instead of filling memory."""
        self.paused = True
        if self._upstream is not None:
            self._upstream.transport.pause_reading()

    def resume(self) -> None:
        """The client takes bytes again."""
        self.paused = False
        self.last_activity = self.gateway.queue.now()
        if self._upstream is not None:
            self._upstream.transport.resume_reading()

    def client_gone(self, code: str = CLIENT_CLOSED) -> None:
        """The client left: stop the engine's work at once; nobody is to blame."""
        if not self.ended:
            self._withdraw()
            self._end(code, CLIENT_ENDS[code])

    def abort(self, error: RouterError) -> None:
        """End it from inside: refused before it was sent, drain's limit, internal fault."""
        if not self.ended:
            self._withdraw()
            self._fail(error)

    def engine_broke(self, code: Code, detail: str) -> None:
        """End it: the engine is to blame."""
        self._leave_engine(Outcome.ENGINE_FAULT)
        self._fail(self._bad_gateway(code, detail))

    def _bad_gateway(self, code: Code, detail: str) -> RouterError:
        assert self.choice is not None
        return ends.bad_gateway(self.choice.service, code, detail)

    def _fail(self, error: RouterError) -> None:
        if self.choice is not None and self.choice.panic:
            error = explain(error, self.gateway.store.current, self.request)
        if not self.relay.started:
            self.relay.status = error.http_status
        self._end(error.code.text, error.message)
        if self.relay.started:
            self.relay.break_off(error, self.request_id.decode())
            self._client.exchange_done(keep_alive=False)
        else:
            self._client.answer_error(error, self.head, self.own_fields())

    def _withdraw(self) -> None:
        """Want no place, no connection and no answer any more; nobody is to blame."""
        if self.ticket is not None:
            self.gateway.room.leave(self.ticket)
            self.ticket = None
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._leave_engine(Outcome.NEUTRAL)

    def _leave_engine(self, outcome: Outcome, *, keep: bool = False) -> None:
        """Release load and connection; the connection goes back to the pool with `keep`.

        The connection first: who gets the place must not be at the engine before this one has left.
        """
        gateway, upstream, in_flight = self.gateway, self._upstream, self._in_flight
        if upstream is not None:
            self._upstream = upstream.user = None
            if self.paused:
                upstream.transport.resume_reading()
            if keep:
                gateway.pool.put(upstream)
            else:
                upstream.close()
        if in_flight is not None:
            self._in_flight = None
            in_flight.release(outcome, gateway.queue.now())

    def _end(self, code: str | None, reason: str = "") -> None:
        self.ended = True
        self.deadline.clear()
        if self._retry is not None:
            self._retry.cancel()
        if self._failed is not None:
            self._tell_failed_attempt()
        self.gateway.exchange_ended(self, self._client.peer, code, reason)

    def _tell_failed_attempt(self) -> None:
        """Account for the attempt before this one, whose failure is not the request's."""
        failed, self._failed = self._failed, None
        assert failed is not None
        self.gateway.attempt_failed(self, failed)
        if self.phase != "queue":
            self.phase = "choose"

    def own_fields(self) -> bytes:
        """The router's own fields of the answer, as they stand on the wire."""
        return ends.own_fields(self.request_id, self.choice, self.attempts)
