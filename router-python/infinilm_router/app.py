"""The router as a whole: makes the parts, runs the loops, drains and cleans up."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeVar

import aiohttp

from infinilm_router.config import RouterConfig
from infinilm_router.config_load import ConfigError
from infinilm_router.handlers import find_handler
from infinilm_router.handlers.context import Context
from infinilm_router.models.catalog import ModelCatalog
from infinilm_router.models.learner import ModelLearner
from infinilm_router.port import Port, confirm
from infinilm_router.proxy.gateway import Gateway
from infinilm_router.proxy.pool import UpstreamPool
from infinilm_router.registry.client import RegistryClient
from infinilm_router.registry.sync import RegistrySync
from infinilm_router.router.health import HealthProber
from infinilm_router.router.load import LoadBook
from infinilm_router.router.queue import WaitingRoom
from infinilm_router.router.table import Service, TableStore
from infinilm_router.utils.access_log import AccessLog
from infinilm_router.utils.errors import Code, RouterError
from infinilm_router.utils.fetch import control_session
from infinilm_router.utils.handover import Door, HandoverError, Successor
from infinilm_router.utils.metrics import Counters
from infinilm_router.utils.time import DeadlineQueue

log = logging.getLogger(__name__)

NEEDS_RESTART: Final = ("host", "router_port", "registry_urls", "state_dir", "handover")
LAST_REQUESTS: Final = 0.25  # seconds for the requests of those who connected last
QUIET_CHECK: Final = 0.05  # seconds
ERROR_EVENT_TIME: Final = 1.0  # seconds for the last error events to reach their clients
AT_ONCE: Final = 0.1  # the same, after a second signal
NEWS: Final = 5.0  # seconds between two lines about a drain under way

T = TypeVar("T")


class _Parts(NamedTuple):
    """What serving needs."""

    gateway: Gateway
    context: Context
    learner: ModelLearner


class App:
    """Owns every part and every task; `run` returns when all of them have ended.

    `reload` reads the configuration again (SIGHUP) and raises ConfigError when it can't be used.
    """

    def __init__(self, config: RouterConfig, reload: Callable[[], RouterConfig]) -> None:
        self._config = config
        self._reload = reload
        self._loops: list[asyncio.Task[None]] = []
        self._configured: list[Callable[[RouterConfig], None]] = []
        self._stopping = False

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, then drain. Returns the exit code."""
        async with control_session() as session:
            parts = self._build(session)
            try:
                await self._serve(parts, _stop_signals())
            except HandoverError as error:
                log.error("can't start reason=%s", error)  # noqa: TRY400
                return 1
            except OSError as error:
                address = f"{self._config.host}:{self._config.router_port}"
                log.error("can't listen address=%s reason=%s", address, error.strerror)  # noqa: TRY400
                return 1
            finally:
                await self._stop_loops()
                parts.gateway.close()
        log.info("stopped")
        return 0

    async def _serve(self, parts: _Parts, stop: asyncio.Queue[int]) -> None:
        """Serve until a signal comes or a successor has taken over, then drain."""
        port = await _unless_stopped(stop, Port.open(*parts))
        if port is None:
            return
        door = None if port.old else self._door()
        if port.old:
            await confirm(port.old)
            try:
                door = self._door()
            except HandoverError as error:
                log.warning("the next router can't take over reason=%s", error)
        port.announce()
        loop = parts.gateway.loop
        loop.add_signal_handler(signal.SIGHUP, self._configure)
        successor = await _unless_stopped(stop, _offered(door, port))
        loop.add_signal_handler(signal.SIGHUP, _nothing_to_reload)
        if door:
            door.close()
        self._stopping = successor is None
        await _drain(parts.gateway, port, stop, successor)

    def _door(self) -> Door | None:
        return Door(self._config.handover) if self._config.handover else None

    def _build(self, session: aiohttp.ClientSession) -> _Parts:
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
            draining=lambda: self._stopping,
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
        return _Parts(gateway, context, learner)

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


def _nothing_to_reload() -> None:
    """SIGHUP while this router does not serve yet, or any more: its default would end it."""


def _stop_signals() -> asyncio.Queue[int]:
    """SIGTERM and SIGINT, in the order in which they come."""
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, _nothing_to_reload)
    return signals


async def _unless_stopped(stop: asyncio.Queue[int], waited: Coroutine[Any, Any, T]) -> T | None:
    """What is waited for; None when a signal stops the router before."""
    told = asyncio.ensure_future(stop.get())
    waiting = asyncio.ensure_future(waited)
    try:
        await asyncio.wait((waiting, told), return_when=asyncio.FIRST_COMPLETED)
        return None if told.done() else await waiting
    finally:
        for task in (told, waiting):
            task.cancel()
        await asyncio.gather(told, waiting, return_exceptions=True)


async def _offered(door: Door | None, port: Port) -> Successor:
    """The successor that has taken over; without a door there is none, ever."""
    if door is None:
        never: asyncio.Future[Successor] = asyncio.get_running_loop().create_future()
        return await never
    return await door.offer(port.filenos())


async def _drain(
    gateway: Gateway, port: Port, stop: asyncio.Queue[int], successor: Successor | None
) -> None:
    """Stop taking requests, let running ones end; one signal more ends at once."""
    config = gateway.config
    gateway.draining = True
    signals_left = 1
    if successor:
        # The port is served as ever: connections that are still here hear nothing of it.
        port.leave()
        successor.release()
        log.info("handed over in_flight=%d", gateway.book.in_flight)
        signals_left = 2
    else:
        log.info("draining in_flight=%d", gateway.book.in_flight)
    drained = gateway.loop.create_task(_drained(gateway, port))
    again = gateway.loop.create_task(_signals(stop, signals_left))
    news = gateway.loop.create_task(_tell(gateway))
    limit = config.drain_delay + config.drain_timeout
    done, _ = await asyncio.wait(
        (drained, again), timeout=limit, return_when=asyncio.FIRST_COMPLETED
    )
    for task in (drained, again, news):
        task.cancel()
    port.leave()
    if again in done:
        log.info("second signal: stopping at once")
        await _end_the_rest(gateway, AT_ONCE)
    else:
        await _end_the_rest(gateway, ERROR_EVENT_TIME)


async def _signals(stop: asyncio.Queue[int], count: int) -> None:
    for _ in range(count):
        await stop.get()


async def _tell(gateway: Gateway) -> None:
    """Whoever waits for the end sees that it comes nearer; after a hand-over nothing else tells."""
    while True:
        await asyncio.sleep(NEWS)
        log.info("still draining in_flight=%d", gateway.book.in_flight)


async def _drained(gateway: Gateway, port: Port) -> None:
    """Balancers see /health say 503 for `drain_delay`, then the port closes, then the rest ends."""
    await asyncio.sleep(gateway.config.drain_delay)
    await port.close()
    await asyncio.sleep(LAST_REQUESTS)
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
