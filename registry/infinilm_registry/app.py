"""Wiring: builds the parts, serves until a signal, stops them in order."""

import asyncio
import logging
import resource
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from infinilm_registry.access import WriteAccess, WriteLimiter
from infinilm_registry.addresses import netloc
from infinilm_registry.config import RegistryConfig
from infinilm_registry.entry import LeaseTerms
from infinilm_registry.errors import RegistryError
from infinilm_registry.etcd.membership import EtcdMembership
from infinilm_registry.etcd.place import SCHEME, Place
from infinilm_registry.etcd.revision import SharedWatch
from infinilm_registry.handlers import Handlers, json_response
from infinilm_registry.loops import clean_up, let_time_pass
from infinilm_registry.membership import LocalMembership, Membership
from infinilm_registry.metrics import HEARTBEAT, CallCounts
from infinilm_registry.probes import Prober, ProbeSettings
from infinilm_registry.store import MemoryStore, SqliteStore, Store, StoreUnusableError
from infinilm_registry.table import ServiceTable
from infinilm_registry.watch import Watch

LOG = logging.getLogger(__name__)
_BODY_BYTES = 64 * 1024
_BACKLOG = 1024
_DESCRIPTORS = 65_536
_SHUTDOWN_SECONDS = 5.0
_WRITES = {"POST", "PUT", "DELETE", "PATCH"}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class StartError(Exception):
    """The registry cannot start; the text says why and what to do."""


async def serve(config: RegistryConfig) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        StartError: the address or the store cannot be had.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    _raise_descriptor_limit()
    table, watch, members = await _prepare(config)
    probes = ProbeSettings(config.health_interval, config.health_timeout, config.allowed_networks)
    prober = Prober(table, probes)
    limits = (config.allowed_networks, config.max_services)
    handlers = Handlers(table, watch, members, prober, *limits, CallCounts())
    runner = _runner(handlers, config)
    try:
        await _listen(runner, config)
        async with asyncio.TaskGroup() as writer:
            writer.create_task(members.run())
            async with asyncio.TaskGroup() as loops:
                loops.create_task(let_time_pass(table, stop))
                loops.create_task(clean_up(table, members, stop, config.cleanup_interval))
                loops.create_task(prober.run(stop))
                await stop.wait()
                watch.close()
                await runner.cleanup()
            members.close()
    finally:
        await runner.cleanup()
        await prober.close()
        await members.release()
    LOG.info("stopped")


async def _prepare(config: RegistryConfig) -> tuple[ServiceTable, Watch, Membership]:
    terms = LeaseTerms(config.heartbeat_timeout, config.removal_timeout)
    if config.store.startswith(SCHEME):
        return await _join(config, terms)
    watch = Watch()
    table = ServiceTable(terms, watch)
    return table, watch, await _open_membership(config, table)


async def _join(
    config: RegistryConfig, terms: LeaseTerms
) -> tuple[ServiceTable, Watch, EtcdMembership]:
    """Become one of the registries on an etcd; one that does not answer now is waited for."""
    watch = SharedWatch()
    table = ServiceTable(terms, watch)
    members = EtcdMembership(Place.parse(config.store), table, config.allowed_networks)
    watch.follow(members.picture)
    await members.load()
    if members.degraded_reason:
        LOG.warning("store degraded reason=%r", members.degraded_reason)
    LOG.info("store opened store=%s services=%d", config.store, len(table))
    return table, watch, members


async def _open_membership(config: RegistryConfig, table: ServiceTable) -> Membership:
    """The membership; a default store that cannot be had is done without."""
    store: Store = MemoryStore()
    if config.store != "memory":
        store = SqliteStore(Path(config.store))
    members = LocalMembership(table, store)
    try:
        await members.load(config.allowed_networks)
    except StoreUnusableError as error:
        await members.release()
        if config.store_chosen:
            raise StartError(f"{error}; name another one with --store, or --store memory") from None
        store = MemoryStore(f"nothing is kept over a restart: {error}")
        members = LocalMembership(table, store)
    if members.degraded_reason:
        LOG.warning("store degraded reason=%r", members.degraded_reason)
    LOG.info("store opened store=%s services=%d", config.store, len(table))
    return members


def _runner(handlers: Handlers, config: RegistryConfig) -> web.AppRunner:
    access = WriteAccess(config.token)
    if not access.token_needed:
        LOG.warning(
            "writes are open to loopback and private addresses: INFINILM_REGISTRY_TOKEN is not set"
        )
    limiter = WriteLimiter(config.write_rate, config.write_burst)
    app = web.Application(
        middlewares=[_count(handlers.calls), _answer_errors, _guard_writes(access, limiter)],
        client_max_size=_BODY_BYTES,
    )
    app.add_routes(handlers.routes())
    return web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        auto_decompress=False,
        keepalive_timeout=75,
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )


async def _listen(runner: web.AppRunner, config: RegistryConfig) -> None:
    await runner.setup()
    try:
        await web.TCPSite(runner, config.host, config.port, backlog=_BACKLOG).start()
    except OSError as error:
        where = netloc(config.host, config.port)
        reason = error.strerror or str(error)
        raise StartError(
            f"cannot listen on {where}: {reason}; choose another --host or --port"
        ) from None
    host, port = runner.addresses[0][:2]
    LOG.info("listening on http://%s", netloc(host, port))


@web.middleware
async def _answer_errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Every refusal and failure as JSON."""
    try:
        return await handler(request)
    except RegistryError as error:
        return json_response(error.body(), error.status, error.headers())
    except web.HTTPException as error:
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return json_response({"error": _http_text(request, error)}, error.status, allow)
    except Exception:  # a fault of ours must not show as an empty or non-JSON answer
        LOG.exception("request failed method=%s path=%r", request.method, request.path)
        return json_response({"error": "Internal server error"}, 500)


def _http_text(request: web.Request, error: web.HTTPException) -> str:
    if error.status == 404:
        return f"No such path: {request.path}"
    if error.status == 405:
        return f"Method {request.method} is not allowed for {request.path}"
    if error.status == 413:
        return f"The body is larger than {_BODY_BYTES} bytes"
    return error.reason


def _count(calls: CallCounts) -> Middleware:
    @web.middleware
    async def count(request: web.Request, handler: _Handler) -> web.StreamResponse:
        response = await handler(request)
        calls.add(request.match_info.route.name, response.status)
        return response

    return count


def _guard_writes(access: WriteAccess, limiter: WriteLimiter) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Let a write pass only from those who may; heartbeats are never held up by the limit."""
        if request.method in _WRITES:
            if request.match_info.route.name != HEARTBEAT:
                limiter.take(request.remote or "")
            authorization = request.headers.get("Authorization", "")
            access.check(request.remote, authorization, request.headers.get("Origin"))
        return await handler(request)

    return guard


def _raise_descriptor_limit() -> None:
    """Every waiting router holds a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
