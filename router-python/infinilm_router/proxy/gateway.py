"""What all connections share, and the checks and the head of a request that is forwarded."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from infinilm_router.config import RouterConfig
from infinilm_router.handlers.context import LocalAnswer
from infinilm_router.proxy.heads import RequestHead
from infinilm_router.proxy.pool import UpstreamPool
from infinilm_router.router.engine import Limits
from infinilm_router.router.load import LoadBook
from infinilm_router.router.queue import RoomLimits, WaitingRoom
from infinilm_router.router.selection import Rules
from infinilm_router.router.table import Service, TableStore
from infinilm_router.utils.access_log import AccessLog
from infinilm_router.utils.errors import CLIENT_CLOSED, CLIENT_ENDS, Code, RouterError
from infinilm_router.utils.headers import request_id_maker
from infinilm_router.utils.metrics import Counters, Failure
from infinilm_router.utils.time import DeadlineQueue

if TYPE_CHECKING:
    from infinilm_router.proxy.ends import FailedAttempt
    from infinilm_router.proxy.forward import Exchange
    from infinilm_router.proxy.server import ClientConnection

log = logging.getLogger(__name__)

# The inference names that engines serve without the /v1 prefix. Everything else that engines
# publish (sleep, weights, abort ...) stays closed unless `proxy_paths` opens it.
OPEN_PATHS: Final = frozenset(
    (
        b"/chat/completions",
        b"/completions",
        b"/embeddings",
        b"/rerank",
        b"/score",
        b"/tokenize",
        b"/detokenize",
        b"/responses",
        b"/messages",
        b"/generate",
    )
)
OPEN_PREFIXES: Final = (b"/v1/", b"/audio/", b"/images/", b"/responses/", b"/messages/")
_LENGTH_ALWAYS: Final = frozenset((b"POST", b"PUT", b"PATCH"))

Handler = Callable[[RequestHead], LocalAnswer]


@dataclass(slots=True)
class Gateway:
    """The parts that connections need. Made by the app, used on the event loop only."""

    config: RouterConfig
    loop: asyncio.AbstractEventLoop
    queue: DeadlineQueue
    store: TableStore
    book: LoadBook
    room: WaitingRoom
    pool: UpstreamPool
    access_log: AccessLog
    counters: Counters
    find_handler: Callable[[bytes], Handler | None]
    engine_api_key: bytes | None = None
    draining: bool = False
    clients: set["ClientConnection"] = field(default_factory=set)
    new_request_id: Callable[[], bytes] = field(default_factory=request_id_maker)
    via: bytes = field(default_factory=lambda: b"infinilm-" + secrets.token_hex(4).encode())

    def __post_init__(self) -> None:
        self.configure(self.config)

    def configure(self, config: RouterConfig) -> None:
        """Serve by these settings from now on; requests under way keep their deadlines."""
        self.config = config
        self.engine_api_key = config.engine_api_key.encode() if config.engine_api_key else None
        limits = Limits(config.max_errors, config.max_concurrency, config.slow_start)
        self.book.configure(limits, self.store.current)
        self.room.configure(
            Rules(config.policy, config.cache_type_routing_threshold),
            RoomLimits(config.queue_size, config.queue_timeout, config.queue_bytes),
        )
        self.pool.idle_timeout = config.pool_idle_timeout
        self.pool.connect_timeout = config.proxy_connect_timeout
        self.access_log.level = config.access_log

    def admit(self, client: "ClientConnection") -> bool:
        """Register a new client; False when there are too many."""
        self.clients.add(client)
        return len(self.clients) <= self.config.max_connections

    def forget(self, client: "ClientConnection") -> None:
        """A client's connection has ended."""
        self.clients.discard(client)

    def close(self) -> None:
        """Close what is left: connections, timers, the log."""
        for client in list(self.clients):
            client.reset()
        self.pool.close()
        self.queue.close()
        self.access_log.flush()

    # Accounts: each request has one outcome, each failure one line that says why.

    def exchange_ended(
        self, exchange: "Exchange", peer: bytes, code: str | None, reason: str
    ) -> None:
        """A proxied request has its outcome; `code` names the failure, None = it went well."""
        now = self.queue.now()
        failure = None
        if code is not None:
            engine = exchange.choice.service.name if exchange.choice else ""
            failure = Failure(engine, exchange.phase, code)
        first = exchange.first_byte_at
        counters = self.counters
        counters.ended(
            exchange.request.model,
            self.store.current.named,
            failure,
            None if first is None else first - exchange.started,
        )
        counters.bytes_sent += exchange.relay.bytes_sent
        self.access_log.exchange(exchange, failure, reason, peer, now)

    def attempt_failed(self, exchange: "Exchange", failed: "FailedAttempt") -> None:
        """An attempt failed, and with it not yet the request."""
        code = failed.error.code.text
        self.counters.retried(Failure(failed.service.name, failed.phase, code))
        self.access_log.attempt(exchange, failed, self.queue.now())

    def refused(self, request_id: bytes, peer: bytes, error: RouterError, phase: str) -> None:
        """A request was answered with an error before it could be forwarded."""
        self._not_forwarded(
            request_id, peer, error.http_status, Failure("", phase, error.code.text), error.message
        )

    def request_cut(self, peer: bytes) -> None:
        """A client left in the middle of its request."""
        failure = Failure("", "client", CLIENT_CLOSED)
        reason = CLIENT_ENDS[CLIENT_CLOSED]
        self._not_forwarded(self.new_request_id(), peer, 0, failure, reason)

    def _not_forwarded(
        self, request_id: bytes, peer: bytes, status: int, failure: Failure, reason: str
    ) -> None:
        self.counters.ended(None, (), failure, None)
        self.access_log.refused(request_id, peer, status, failure, reason)

    def check_forwardable(self, head: RequestHead) -> None:
        """May this request go to an engine?

        Raises:
            RouterError: `path_not_allowed` or `loop_detected`.
        """
        path = head.path
        if not (
            path in OPEN_PATHS
            or path.startswith(OPEN_PREFIXES)
            or (self.config.proxy_paths and self._opened(path))
        ):
            raise RouterError(
                Code.PATH_NOT_ALLOWED,
                f"{path.decode()} is not a path of the API; --proxy-paths opens further ones",
            )
        if head.via and any(self.via in value for value in head.via):
            raise RouterError(
                Code.LOOP_DETECTED, "this router is registered as an engine of itself"
            )
        head.forwardable = not self._opened(path)  # SIGHUP may close it

    def _opened(self, path: bytes) -> bool:
        return any(path.startswith(prefix.encode()) for prefix in self.config.proxy_paths)

    def upstream_head(
        self, client: "ClientConnection", exchange: "Exchange", service: Service, body_length: int
    ) -> bytes:
        """The request's head as the engine gets it (docs/HTTP.md section 4)."""
        head = exchange.head
        if head.hop is None:
            head.hop = self._forwarded(client, head)
        key = self.engine_api_key
        passed = head.passed if key is None else _with_key(head.lines, key)
        length = (
            b"Content-Length: %d\r\n" % body_length
            if body_length or head.method in _LENGTH_ALWAYS
            else b""
        )
        return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b%bX-Request-Id: %b\r\n%b\r\n" % (
            head.method,
            head.target if service.api_prefix is None else engine_target(service, head),
            service.host_field,
            passed,
            head.hop,
            exchange.request_id,
            length,
        )

    def _forwarded(self, client: "ClientConnection", head: RequestHead) -> bytes:
        known: Mapping[bytes, bytes] = dict(head.forwarded) if client.trusted else {}
        chain = known.get(b"x-forwarded-for")
        extra = b"".join(
            b"%b: %b\r\n" % (name, known[name])
            for name in (b"forwarded", b"x-real-ip")
            if name in known
        )
        return (
            b"X-Forwarded-For: %b\r\nX-Forwarded-Host: %b\r\nX-Forwarded-Proto: %b\r\n"
            b"%bVia: 1.1 %b\r\n"
        ) % (
            b"%b, %b" % (chain, client.peer) if chain else client.peer,
            known.get(b"x-forwarded-host", head.host or b""),
            known.get(b"x-forwarded-proto", b"http"),
            extra,
            self.via,
        )


def engine_target(service: Service, head: RequestHead) -> bytes:
    """The target for one engine: `metadata.api_prefix` maps `/v1/...` and the unprefixed names.

    Without that key the target passes unchanged, byte for byte.
    """
    prefix = service.api_prefix
    if prefix == "" and head.path.startswith(b"/v1/"):
        return head.target[3:]
    if prefix == "/v1" and not head.path.startswith(b"/v1/"):
        return b"/v1" + head.target
    return head.target


def _with_key(lines: list[bytes], key: bytes) -> bytes:
    """The fields with the engine's own key in place of the client's Authorization."""
    kept = [
        b"".join(lines[at : at + 4])
        for at in range(0, len(lines), 4)
        if lines[at].lower() != b"authorization"
    ]
    return b"".join(kept) + b"Authorization: Bearer %b\r\n" % key
