"""Where clients connect to: opened by this router, or taken over from the one that runs."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from infinilm_router.config import RouterConfig
from infinilm_router.handlers.context import Context
from infinilm_router.models.learner import ModelLearner
from infinilm_router.proxy.gateway import Gateway
from infinilm_router.proxy.server import ClientConnection
from infinilm_router.utils.handover import HandoverError, Inheritance

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
MAX_UNSENT: Final = 64 * 1024  # bytes for a client that the kernel holds, beside those on their way
FIRST_MODELS_TIME: Final = 1.0  # seconds
READY_TIME: Final = 30.0  # seconds in which a successor must know its engines
READY_CHECK: Final = 0.02  # seconds


class Port:
    """The listening sockets, accepting; `old` is the router that had them before."""

    def __init__(
        self, gateway: Gateway, servers: Sequence[asyncio.Server], old: Inheritance | None = None
    ) -> None:
        self._gateway = gateway
        self._servers = servers
        self.old = old

    @classmethod
    async def open(cls, gateway: Gateway, ctx: Context, learner: ModelLearner) -> "Port":
        """This router's own port, or that of the router which runs.

        Raises:
            OSError: the port is taken.
            HandoverError: nobody gives it, or this router can't serve as well.
        """
        config = gateway.config
        if config.take_over:
            return await cls._take_over(gateway, ctx, learner)
        with contextlib.suppress(TimeoutError):
            # Engines that name no models are asked before the first client comes, if they answer
            # soon.
            await asyncio.wait_for(learner.settled.wait(), FIRST_MODELS_TIME)
        server = await gateway.loop.create_server(
            lambda: ClientConnection(gateway),
            config.host,
            config.router_port,
            backlog=BACKLOG,
            reuse_address=True,
        )
        for listener in server.sockets:
            _limit_unsent(listener.fileno())
        return cls(gateway, [server])

    @classmethod
    async def _take_over(cls, gateway: Gateway, ctx: Context, learner: ModelLearner) -> "Port":
        config = gateway.config
        assert config.handover is not None  # checked with the configuration
        old = await asyncio.to_thread(Inheritance, config.handover)
        with contextlib.ExitStack() as at_failure:
            at_failure.callback(old.give_up)
            _check_address(config, old.listeners)
            await _ready(old, ctx, learner)
            at_failure.pop_all()
        servers = [
            await gateway.loop.create_server(
                lambda: ClientConnection(gateway), sock=listener, backlog=BACKLOG
            )
            for listener in old.listeners
        ]
        return cls(gateway, servers, old)

    def announce(self) -> None:
        """Not by the log: scripts wait for this line, whatever the log level."""
        first = self._servers[0].sockets[0]
        host, port = first.getsockname()[:2]
        shown = f"[{host}]" if first.family == socket.AF_INET6 else host
        policy = self._gateway.config.policy
        with contextlib.suppress(OSError):  # a full disk is no reason to leave the port
            sys.stdout.write(f"listening on http://{shown}:{port} policy={policy}\n")
            sys.stdout.flush()

    def filenos(self) -> list[int]:
        """The descriptors of its sockets, for a successor."""
        return [sock.fileno() for server in self._servers for sock in server.sockets]

    def leave(self) -> None:
        """Accept no more; what waits is for whoever else has these sockets."""
        for server in self._servers:
            server.close()

    async def close(self) -> None:
        """Accept what waits, since closing would reset it, and no more."""
        loop, gateway = self._gateway.loop, self._gateway
        waiting = [taken for fileno in self.filenos() for taken in _accept_waiting(fileno)]
        self.leave()
        for taken in waiting:
            await loop.connect_accepted_socket(lambda: ClientConnection(gateway), taken)


def _limit_unsent(listener: int) -> None:
    """Let the kernel hold little of what a client has not taken: connections inherit it.

    Of megabytes it would not show that a slow reader goes on reading.
    """
    with socket.socket(fileno=os.dup(listener)) as copy:  # uvloop's has no setsockopt
        copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT)


def _accept_waiting(listener: int) -> Iterator[socket.socket]:
    with socket.socket(fileno=os.dup(listener)) as copy, contextlib.suppress(OSError):
        while True:
            taken, _ = copy.accept()
            taken.setblocking(False)
            yield taken


def _check_address(config: RouterConfig, listeners: Sequence[socket.socket]) -> None:
    any_port = config.router_port == 0
    found = [listener.getsockname()[:2] for listener in listeners]
    wanted = {
        address[:2]
        for *_, address in socket.getaddrinfo(
            config.host, config.router_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    }
    if {(host, 0 if any_port else port) for host, port in found} != wanted:
        first, port = found[0]
        raise HandoverError(
            f"the router that runs listens on {first}:{port}, this one is to listen on"
            f" {config.host}:{config.router_port}: stop it first"
        )


async def _ready(old: Inheritance, ctx: Context, learner: ModelLearner) -> None:
    """Return when this router can serve as well as the one before.

    It knows the engines, has probed each, and has asked those that name no models. Meanwhile
    clients of an old router that has ended wait in the queue of the port, and are not refused.
    """
    missing = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_TIME):
            while missing := _missing(ctx, learner):  # noqa: ASYNC110 - at a take-over only
                await asyncio.sleep(READY_CHECK)
    if missing and not old.is_gone():
        raise HandoverError(f"not ready in {READY_TIME:g} s: {missing}")
    if missing:
        log.warning("not ready, but the router before this one is gone reason=%s", missing)


def _missing(ctx: Context, learner: ModelLearner) -> str | None:
    table = ctx.store.current
    if not table.known:
        return "no registry has answered, and there is no saved list"
    for engine in table.engines:
        if ctx.prober.view(engine.name).last_check is None or not learner.has_asked(engine):
            return f"engine '{engine.name}' has not been asked yet"
    return None


async def confirm(old: Inheritance) -> None:
    """Tell the old router that this one serves."""
    if not await asyncio.to_thread(old.confirm):
        log.warning("the router before this one still accepts connections: stop it")
