"""The router as a whole: makes the parts, runs the loops, drains and cleans up."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

import aiohttp

from infinilm_router.config import RouterConfig
from infinilm_router.config_load import ConfigError
from infinilm_router.handlers import find_handler
from infinilm_router.handlers.context import Context
from infinilm_router.models.catalog import ModelCatalog
from infinilm_router.models.learner import ModelLearner
from infinilm_router.proxy.gateway import Gateway
from infinilm_router.proxy.pool import UpstreamPool
from infinilm_router.proxy.server import ClientConnection
from infinilm_router.registry.client import RegistryClient
from infinilm_router.registry.sync import RegistrySync
from infinilm_router.router.health import HealthProber
from infinilm_router.router.load import LoadBook
from infinilm_router.router.queue import WaitingRoom
from infinilm_router.router.table import Service, TableStore
from infinilm_router.utils.access_log import AccessLog
from infinilm_router.utils.errors import Code, RouterError
from infinilm_router.utils.fetch import control_session
from infinilm_router.utils.metrics import Counters
from infinilm_router.utils.time import DeadlineQueue

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
MAX_UNSENT: Final = 64 * 1024  # bytes for a client that the kernel holds, beside those on their way
FIRST_MODELS_TIME: Final = 1.0  # seconds
NEEDS_RESTART: Final = ("host", "router_port", "registry_urls", "state_dir")
QUIET_CHECK: Final = 0.05  # seconds
ERROR_EVENT_TIME: Final = 1.0  # seconds for the last error events to reach their clients
AT_ONCE: Final = 0.1  # the same, after a second signal


class App:
    """Owns every part and every task; `run` returns when all of them have ended.

    `reload` reads the configuration again (SIGHUP) and raises ConfigError when it can't be used.
    """

    def __init__(self, config: RouterConfig, reload: Callable[[], RouterConfig]) -> None:
        self._config = config
        self._reload = reload
        self._loops: list[asyncio.Task[None]] = []
        self._configured: list[Callable[[RouterConfig], None]] = []

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, then drain. Returns the exit code."""
        stop = _stop_signals()
        async with control_session() as session:
            gateway, learner = self._build(session)
            try:
                await _first_models(learner)
                server = await _listen(gateway)
                gateway.loop.add_signal_handler(signal.SIGHUP, self._configure)
                await stop.get()
                gateway.loop.remove_signal_handler(signal.SIGHUP)
                await _drain(gateway, server, stop)
            except OSError as error:
                address = f"{self._config.host}:{self._config.router_port}"
                log.error("can't listen address=%s reason=%s", address, error.strerror)  # noqa: TRY400
                return 1
            finally:
                await self._stop_loops()
                gateway.close()
        log.info("stopped")
        return 0

    def _build(self, session: aiohttp.ClientSession) -> tuple[Gateway, ModelLearner]:
        config = self._config
        loop = asyncio.get_running_loop()
        queue = DeadlineQueue(loop)
        book = LoadBook()
        store = TableStore(on_change=lambda last, new: book.follow(last, new, queue.now()))
        room = WaitingRoom(store, book)
        counters = Counters()
        store.set_services(config.static_services, known=not config.registry_urls)
        pool = UpstreamPool(queue, config.pool_idle_timeout, config.proxy_connect_timeout)
        learner = ModelLearner(config, session, store)
        prober = HealthProber(config, session, store, _on_health_change(pool), book.heard_since)
        context = Context(
            config=config,
            store=store,
            load=book,
            room=room,
            catalog=ModelCatalog(store),
            prober=prober,
            counters=counters,
            connections=lambda: len(gateway.clients),
            draining=lambda: gateway.draining,
            started_at=time.time(),
        )
        gateway = Gateway(
            config=config,
            loop=loop,
            queue=queue,
            store=store,
            book=book,
            room=room,
            pool=pool,
            access_log=AccessLog(loop, config.access_log),
            counters=counters,
            find_handler=find_handler(context),
        )
        self._configured += [gateway.configure, prober.configure, learner.configure]
        self._start(prober.run(), "health")
        self._start(learner.run(), "models")
        self._start(room.run(queue.now), "queue")
        if config.registry_urls:
            client = RegistryClient(session, config.registry_urls)
            sync = RegistrySync(config, client, store, learner=learner)
            self._configured.append(sync.configure)
            self._start(sync.run(), "registry")
        else:
            self._configured.append(
                lambda new: store.set_services(learner.fill(s) for s in new.static_services)
            )
        return gateway, learner

    def _configure(self) -> None:
        """Apply the configuration as it stands now; a bad one changes nothing."""
        try:
            new = self._reload()
        except ConfigError as error:
            log.error("configuration not reloaded, going on with the last one:\n%s", error)  # noqa: TRY400
            return
        for name in NEEDS_RESTART:
            if getattr(new, name) != getattr(self._config, name):
                log.warning("setting needs a restart name=%s", name)
                new = replace(new, **{name: getattr(self._config, name)})
        self._config = new
        logging.getLogger().setLevel(new.log_level.upper())
        for configure in self._configured:
            configure(new)
        log.info("configuration reloaded")

    def _start(self, loop: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(loop, name=name)
        task.add_done_callback(_report_death)
        self._loops.append(task)

    async def _stop_loops(self) -> None:
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)


def _report_death(task: asyncio.Task[None]) -> None:
    """A loop that ends by itself is a fault that must be seen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("loop died name=%s", task.get_name(), exc_info=error)


def _on_health_change(pool: UpstreamPool) -> Callable[[Service, bool], None]:
    def changed(service: Service, up: bool) -> None:
        if not up:
            pool.drop(service.address)

    return changed


async def _first_models(learner: ModelLearner) -> None:
    """Engines that name no models are asked before the first client comes, if they answer soon."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(learner.settled.wait(), FIRST_MODELS_TIME)


def _stop_signals() -> asyncio.Queue[int]:
    """SIGTERM and SIGINT, in the order in which they come."""
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    return signals


async def _listen(gateway: Gateway) -> asyncio.Server:
    config = gateway.config
    server = await gateway.loop.create_server(
        lambda: ClientConnection(gateway),
        config.host,
        config.router_port,
        backlog=BACKLOG,
        reuse_address=True,
    )
    for listener in server.sockets:
        _limit_unsent(listener)
    host, port = server.sockets[0].getsockname()[:2]
    shown = f"[{host}]" if server.sockets[0].family == socket.AF_INET6 else host
    # Not by the log: scripts wait for this line, whatever the log level.
    sys.stdout.write(f"listening on http://{shown}:{port} policy={config.policy}\n")
    sys.stdout.flush()
    return server


def _limit_unsent(listener: socket.socket) -> None:
    """Let the kernel hold little of what a client has not taken: connections inherit it.

    Of megabytes it would not show that a slow reader goes on reading.
    """
    with socket.socket(fileno=os.dup(listener.fileno())) as own:  # uvloop's has no setsockopt
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT)


async def _drain(gateway: Gateway, server: asyncio.Server, stop: asyncio.Queue[int]) -> None:
    """Stop taking requests, let running ones end; a second signal ends at once."""
    config = gateway.config
    log.info("draining in_flight=%d", gateway.book.in_flight)
    gateway.draining = True
    drained = gateway.loop.create_task(_drained(gateway, server))
    again = gateway.loop.create_task(stop.get())
    limit = config.drain_delay + config.drain_timeout
    done, _ = await asyncio.wait(
        (drained, again), timeout=limit, return_when=asyncio.FIRST_COMPLETED
    )
    for task in (drained, again):
        task.cancel()
    server.close()
    if again in done:
        log.info("second signal: stopping at once")
        await _end_the_rest(gateway, AT_ONCE)
    else:
        await _end_the_rest(gateway, ERROR_EVENT_TIME)


async def _drained(gateway: Gateway, server: asyncio.Server) -> None:
    """Balancers see /health say 503 for `drain_delay`, then the port closes, then the rest ends."""
    await asyncio.sleep(gateway.config.drain_delay)
    server.close()
    for client in list(gateway.clients):
        client.close_if_idle()
    await _quiet(gateway)


async def _quiet(gateway: Gateway) -> None:
    """Wait until no client is in the middle of a request or an answer."""
    while any(client.is_busy() for client in gateway.clients):  # noqa: ASYNC110 - at drain only
        await asyncio.sleep(QUIET_CHECK)


async def _end_the_rest(gateway: Gateway, patience: float) -> None:
    """Tell the streams that outlive the drain; never end them silently."""
    error = RouterError(Code.DRAINING, "the router is stopping", close=True)
    for client in list(gateway.clients):
        client.abort(error)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_quiet(gateway), patience)
