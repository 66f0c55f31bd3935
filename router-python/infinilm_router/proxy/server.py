"""The front: client connections, their framing and limits, and where each request goes."""

import asyncio
import ipaddress
import logging
import re
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from infinilm_router.handlers.context import LocalAnswer
from infinilm_router.proxy.answers import answer_bytes
from infinilm_router.proxy.bodies import BodyReader, request_body, too_large
from infinilm_router.proxy.deadlines import on_deadline
from infinilm_router.proxy.fields import line_ends_are_clean, refused
from infinilm_router.proxy.forward import Exchange
from infinilm_router.proxy.heads import MAX_REQUEST_HEAD, RequestHead, parse_request_head
from infinilm_router.proxy.memo import HeadMemo
from infinilm_router.proxy.relay import JOIN_UP_TO
from infinilm_router.proxy.request import read_request
from infinilm_router.utils.errors import CLIENT_TIMEOUT, Code, RouterError
from infinilm_router.utils.time import Deadline

if TYPE_CHECKING:
    from infinilm_router.proxy.gateway import Gateway, Handler

log = logging.getLogger(__name__)

MAX_BACKLOG: Final = 64 * 1024  # bytes of further requests kept while one is served
MIN_BODY_RATE: Final = 1024  # bytes/s
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
LINGER: Final = 2.0  # seconds in which a refused client's bytes are read and dropped

_EMPTY_LINES = re.compile(rb"(?:\r\n)*+")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_IDLE, _HEAD, _BODY, _ANSWER, _CLOSING = range(5)


class ClientConnection(asyncio.Protocol):
    """One client connection: requests in, one at a time, answers out in order."""

    def __init__(self, gateway: "Gateway") -> None:
        self.gateway = gateway
        self.transport: asyncio.Transport
        self.peer = b""
        self.trusted = False
        self.exchange: Exchange | None = None
        self.exchange_deadline = Deadline(self._on_exchange_deadline)
        self._deadline = Deadline(self._on_deadline)
        self._state = _IDLE
        self._buffer = b""
        self._heads = HeadMemo(parse_request_head)
        self._head: RequestHead | None = None
        self._reader: BodyReader | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._size_at_tick = 0
        self._body_timed = False
        self._reading_paused = False
        self._pending_at_tick = 0
        self.write_paused = False

    # The transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self.transport = cast("asyncio.Transport", transport)
        peer = self.transport.get_extra_info("peername")
        host = peer[0] if peer else ""
        self.peer = host.encode()
        self.trusted = bool(self.gateway.config.trusted_proxies) and self._is_trusted(host)
        if self.gateway.admit(self):
            self.gateway.queue.set(self._deadline, self.gateway.config.keep_alive_timeout)
        else:
            self._refuse(
                RouterError(Code.OVERLOADED, "too many connections", status=503, close=True)
            )

    def _is_trusted(self, host: str) -> bool:
        address = ipaddress.ip_address(host.partition("%")[0])
        return any(address in network for network in self.gateway.config.trusted_proxies)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._state < _ANSWER and not self.write_paused:
            if self._buffer:
                data, self._buffer = self._buffer + data, b""
            self._process(data)
        elif self._state != _CLOSING:
            self._buffer += data
            if len(self._buffer) > MAX_BACKLOG:
                self._reading_paused = True
                self.transport.pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more. A client that waits for an answer counts as gone."""
        self._leave()
        return False

    def connection_lost(self, _: Exception | None) -> None:
        """The connection has ended."""
        self._leave()
        self._state = _CLOSING
        self._deadline.clear()
        self.gateway.forget(self)

    def pause_writing(self) -> None:
        """The client reads more slowly than the engine writes."""
        self.write_paused = True
        if self.exchange is not None:
            self.exchange.pause()
        # Later, when what the socket takes at once has gone: that is no sign of a reader.
        self.gateway.loop.call_soon(self._await_slow_reader)

    def _await_slow_reader(self) -> None:
        if self.write_paused and not self.transport.is_closing():
            self._await_reader()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.write_paused = False
        if self.exchange is not None:
            self.exchange.resume()
        if self._state == _ANSWER:
            self._deadline.clear()
        elif self._state != _CLOSING:
            self._go_on()

    def _leave(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()
        elif self._state in (_HEAD, _BODY):
            self._state = _CLOSING
            self.gateway.request_cut(self.peer)

    # Requests

    def _process(self, data: bytes) -> None:
        """Take bytes until a request is under way or more bytes are needed."""
        try:
            while data and self._state < _ANSWER and not self.write_paused:
                data = self._read_body(data) if self._state == _BODY else self._read_head(data)
        except RouterError as error:
            self._refuse(error)
            return
        except Exception:  # the last line of defence: one bad request must not pass silently
            log.exception("internal error")
            self._refuse(RouterError(Code.INTERNAL, "internal error", close=True))
            return
        if data:
            self._buffer = data
        if self._state == _BODY and not self._body_timed:
            self._body_timed = True
            self.gateway.queue.set(self._deadline, self.gateway.config.body_timeout)

    def _read_head(self, data: bytes) -> bytes:
        """Take one head; returns what follows it."""
        if data[0] == 13 and (empty := _EMPTY_LINES.match(data)) and empty.end():
            data = data[empty.end() :]
            self._start_head_timer()
        end = data.find(b"\r\n\r\n", 0, MAX_REQUEST_HEAD)
        if end < 0:
            self._keep_partial_head(data)
            return b""
        end += 4
        head, length = self._heads.read(data[:end])
        data = data[end:]
        max_bytes = self.gateway.config.max_body_bytes
        if length == len(data) <= max_bytes and not head.bodyless:  # as usual, it came whole
            self._dispatch(head, data)
            return b""
        reader = request_body(head, length, max_bytes)
        if reader.done:
            self._dispatch(head, b"")
            return data
        self._state = _BODY
        self._head, self._reader = head, reader
        self._parts, self._size, self._size_at_tick, self._body_timed = [], 0, 0, False
        if head.expect_continue and not data and not head.http_1_0:
            self.transport.write(_CONTINUE)
        return data

    def _keep_partial_head(self, data: bytes) -> None:
        if len(data) >= MAX_REQUEST_HEAD:
            raise refused(f"the head is larger than {MAX_REQUEST_HEAD} bytes", 431)
        if not line_ends_are_clean(data):
            raise refused("lines must end with CRLF, and NUL bytes are not allowed")
        self._buffer = data
        if data:
            self._start_head_timer()

    def _start_head_timer(self) -> None:
        if self._state == _IDLE:
            self._state = _HEAD
            self.gateway.queue.set(self._deadline, self.gateway.config.head_timeout)

    def _read_body(self, data: bytes) -> bytes:
        """Take bytes of the body; returns what follows it."""
        reader = self._reader
        assert reader is not None
        assert self._head is not None
        payload, rest = reader.feed(data)
        self._parts.append(payload)
        self._size += len(payload)
        if self._size > self.gateway.config.max_body_bytes:
            raise too_large(self.gateway.config.max_body_bytes)
        if reader.fault:
            raise refused(reader.fault)
        if reader.done:
            body = payload if len(self._parts) == 1 else b"".join(self._parts)
            head, self._head, self._reader, self._parts = self._head, None, None, []
            self._dispatch(head, body)
        return rest

    def _dispatch(self, head: RequestHead, body: bytes) -> None:
        """Answer a whole request, or send it on its way."""
        gateway = self.gateway
        self._state = _ANSWER
        self._deadline.clear()
        if not head.forwardable and (handler := gateway.find_handler(head.path)):
            self._answer_locally(head, handler)
            return
        self.exchange = exchange = Exchange(self, head, body)
        try:
            if not head.forwardable:
                gateway.check_forwardable(head)
            exchange.request = read_request(head, body, self.peer)
            exchange.attempt()
        except RouterError as error:
            exchange.abort(error)

    def _answer_locally(self, head: RequestHead, handler: "Handler") -> None:
        try:
            check_read_only(head)
            answer = handler(head)
        except RouterError as error:
            request_id = head.request_id or self.gateway.new_request_id()
            self.gateway.refused(request_id, self.peer, error, "choose")
            self.answer_error(error, head, b"x-request-id: %b\r\n" % request_id)
            return
        keep = self.may_keep_alive(head)
        self.transport.write(answer_bytes(head, answer, b"", keep=keep))
        self.exchange_done(keep_alive=keep)

    # Answers

    def may_keep_alive(self, head: RequestHead) -> bool:
        """Whether the connection may live on after the answer."""
        return head.keep_alive() and not self.gateway.draining

    def answer_error(self, error: RouterError, head: RequestHead | None, own: bytes) -> None:
        """Answer with an error made by the router; `own` = fields as they stand on the wire."""
        fields = (*error.headers(), *((b"Allow", b"GET, HEAD"),) * (error.http_status == 405))
        answer = LocalAnswer(error.http_status, error.body(), headers=fields)
        keep = not error.close and head is not None and self.may_keep_alive(head)
        self.transport.write(answer_bytes(head, answer, own, keep=keep))
        self.exchange_done(keep_alive=keep)

    def exchange_done(self, *, keep_alive: bool) -> None:
        """The answer is complete: go on with the next request, or close."""
        self.exchange = None
        gateway = self.gateway
        if self._state == _CLOSING or self.transport.is_closing():
            return
        if not keep_alive or gateway.draining:
            self.end_after_writes()
            return
        self._state = _IDLE
        if self.write_paused:
            self._await_reader()  # the next request is looked at when this answer has been taken
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Take what has come meanwhile, or wait for the next request."""
        if self._state == _IDLE:
            self.gateway.queue.set(self._deadline, self.gateway.config.keep_alive_timeout)
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()
        if self._buffer:
            data, self._buffer = self._buffer, b""
            self._process(data)

    def _refuse(self, error: RouterError) -> None:
        """Answer a request that can't be trusted further, then close without losing the answer."""
        request_id = self.gateway.new_request_id()
        self.gateway.refused(request_id, self.peer, error, "client")
        answer = LocalAnswer(error.http_status, error.body(), headers=tuple(error.headers()))
        own = b"x-request-id: %b\r\n" % request_id
        self.transport.write(answer_bytes(None, answer, own, keep=False))
        self.end_after_writes()

    # Downstream (see relay.Downstream)

    def write(self, *parts: bytes) -> None:
        """Send these bytes."""
        if len(parts) == 1:
            self.transport.write(parts[0])
        elif len(parts[-1]) <= JOIN_UP_TO:
            self.transport.write(b"".join(parts))
        else:
            self.transport.writelines(parts)

    def end_after_writes(self) -> None:
        """Close once everything is sent.

        The client may still be sending: closing then would reset the connection and take the
        answer with it. So the sending side is closed, and what comes is dropped for a moment.
        """
        if self._state == _CLOSING:
            return
        self._state = _CLOSING
        self._buffer = b""
        if self.transport.is_closing():
            return
        self.transport.write_eof()
        if self._reading_paused:
            self.transport.resume_reading()
        self._await_reader()

    def _await_reader(self) -> None:
        """Wait for the client to take what is pending (or to close), as long as it goes on."""
        pending = self._pending_at_tick = self.transport.get_write_buffer_size()
        self.gateway.queue.set(
            self._deadline, self.gateway.config.write_timeout if pending else LINGER
        )

    def reset(self) -> None:
        """Close at once, visibly unfinished: inside an answer with a TCP reset.

        Where nothing but the end of the connection delimits a body, an orderly end would make a
        cut answer look whole.
        """
        if self._state == _ANSWER:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._state = _CLOSING
        self.transport.abort()

    def abort(self, error: RouterError) -> None:
        """End what is under way with this error."""
        if self.exchange is not None:
            self.exchange.abort(error)
        elif self._state in (_HEAD, _BODY):
            self._refuse(error)

    def is_busy(self) -> bool:
        """Whether a request or an answer is on its way."""
        if self._state == _CLOSING:
            return not self.transport.is_closing() and self.transport.get_write_buffer_size() > 0
        return self._state != _IDLE

    def close_if_idle(self) -> None:
        """For drain: close when no request is under way."""
        if self._state == _IDLE:
            self.end_after_writes()

    # Time

    def _on_exchange_deadline(self) -> None:
        if self.exchange is not None:
            on_deadline(self.exchange)

    def _on_deadline(self) -> None:
        if self._state == _IDLE and not self.write_paused:
            self.end_after_writes()
        elif self._state == _HEAD:
            self._refuse(refused("the head did not arrive in time", 408))
        elif self._state == _BODY:
            self._check_body_rate()
        elif self.transport.get_write_buffer_size() < self._pending_at_tick:
            self._await_reader()
        else:  # a reader that takes nothing, or does not close
            if self.exchange is not None:
                self.exchange.client_gone(CLIENT_TIMEOUT)
            self.transport.abort()

    def _check_body_rate(self) -> None:
        timeout = self.gateway.config.body_timeout
        if self._size - self._size_at_tick < MIN_BODY_RATE * timeout:
            self._refuse(refused("the body did not arrive in time", 408))
            return
        self._size_at_tick = self._size
        self.gateway.queue.set(self._deadline, timeout)


def check_read_only(head: RequestHead) -> None:
    """Local endpoints are read only.

    Raises:
        RouterError: with 405 for other methods than GET and HEAD.
    """
    if head.method not in (b"GET", b"HEAD"):
        raise RouterError(
            Code.INVALID_REQUEST, f"{head.path.decode()} answers GET only", status=405
        )
