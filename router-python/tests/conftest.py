"""Small HTTP servers and builders that the tests of the control plane share."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from infinilm_router.config import RouterConfig
from infinilm_router.router.health import HealthProber
from infinilm_router.router.table import Service, TableStore
from infinilm_router.utils.fetch import control_session

Answer = tuple[int, Any]
Answers = dict[str, Answer | Callable[[], Answer]]


class FakeServer:
    """Answers GETs from a dict that tests change while it runs: path -> (status, JSON or bytes)."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.requests: list[web.Request] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def paths(self) -> list[str]:
        return [request.path_qs for request in self.requests]

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        answer = self.answers.get(request.path, (404, {}))
        status, body = answer() if callable(answer) else answer
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        headers = {"Location": "/elsewhere"} if 300 <= status < 400 and status != 304 else None
        return web.Response(status=status, body=body, headers=headers)


@contextlib.asynccontextmanager
async def _serving(answers: Answers | None = None, port: int = 0) -> AsyncIterator[FakeServer]:
    server = FakeServer(answers or {})
    app = web.Application()
    app.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        server.port = runner.addresses[0][1]
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture
def serving() -> Callable[..., AbstractAsyncContextManager[FakeServer]]:
    """`async with serving({"/health": (200, {})}, port=p) as server:`."""
    return _serving


@contextlib.asynccontextmanager
async def _silent() -> AsyncIterator[str]:
    gone = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.close()
        gone.set()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.wait_for(gone.wait(), 10)


@pytest.fixture
def silent() -> Callable[[], AbstractAsyncContextManager[str]]:
    """`async with silent() as url:` accepts and never answers; must be asked at least once."""
    return _silent


@contextlib.asynccontextmanager
async def _running(loop: Awaitable[None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.ensure_future(loop)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def running() -> Callable[..., AbstractAsyncContextManager[asyncio.Task[None]]]:
    """`async with running(prober.run()):` cancels the loop at the end; its faults come out."""
    return _running


async def _until(condition: Callable[[], Any], timeout: float = 10.0) -> Any:  # noqa: ASYNC109
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "condition did not come true"
        await asyncio.sleep(0.005)
    return value


@pytest.fixture
def until() -> Callable[..., Awaitable[Any]]:
    """`await until(lambda: condition)`."""
    return _until


@pytest.fixture
def session() -> Callable[[], aiohttp.ClientSession]:
    """The client session that the app uses."""
    return control_session


@pytest.fixture
def config() -> Callable[..., RouterConfig]:
    """A configuration with short times; keywords change it."""

    def make(**changes: Any) -> RouterConfig:
        quick = {
            "health_interval": 0.02,
            "health_timeout": 1.0,
            "registry_sync_interval": 0.1,
            "service_removal_grace_period": 0.2,
            "state_dir": None,
        }
        return RouterConfig(**{**quick, **changes})

    return make


@pytest.fixture
def engine() -> Callable[..., Service]:
    """A service of type openai-api."""

    def make(name: str = "a", port: int = 9000, **changes: Any) -> Service:
        metadata = {"type": "openai-api", **changes.pop("metadata", {})}
        url = f"http://127.0.0.1:{port}"
        return Service(name, "127.0.0.1", port, url, metadata=metadata, **changes)

    return make


class Probed:
    """A prober, its table, and every change of verdict."""

    def __init__(self, http: Any, config: Any, services: tuple[Service, ...]) -> None:
        self.heard = False
        self.store = TableStore()
        self.store.set_services(services)
        self.changes: list[tuple[str, bool]] = []
        self.prober = HealthProber(
            config,
            http,
            self.store,
            lambda s, up: self.changes.append((s.name, up)),
            lambda *_: self.heard,
        )

    @property
    def down(self) -> set[str]:
        return set(self.store.current.down)


@pytest.fixture
def probing(
    session: Any, config: Any, running: Any
) -> Callable[..., AbstractAsyncContextManager[Probed]]:
    """`async with probing(*services, **configuration) as probed:`."""

    @contextlib.asynccontextmanager
    async def start(*services: Service, **changes: Any) -> AsyncIterator[Probed]:
        async with session() as http:
            parts = Probed(http, config(**changes), services)
            async with running(parts.prober.run()):
                yield parts

    return start
