"""Fake engines, registries and relays in the test's process: an event loop in its own thread."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from rig.engine_answer import Record
from rig.engine_script import Json
from rig.etcd_proxy import EtcdProxy
from rig.fake_engine import FakeEngine, Settings
from rig.fake_registry import FakeRegistry
from rig.processes import free_port
from rig.relay import Relay

T = TypeVar("T")


class Farm:
    """Starts fakes, calls them from the test's thread, closes them all."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._fakes: list[FakeEngine | FakeRegistry | Relay | EtcdProxy] = []
        self._reserved: list[socket.socket] = []

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float = 20.0) -> T:
        """Run a coroutine on the farm's loop and wait for its value."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    def engine(self, name: str = "fake", **settings: Any) -> FakeEngine:
        """A listening engine (with `listening=False` its port refuses)."""
        engine = self.call(_make(name, settings))
        port = free_port()
        self.call(engine.start(port))
        if not engine.settings.listening:
            self._reserve(port)
        self._fakes.append(engine)
        return engine

    def registry(self) -> FakeRegistry:
        registry = self.call(_make_registry())
        self.call(registry.start())
        self._fakes.append(registry)
        return registry

    def relay(self, target_port: int) -> Relay:
        """A relay on a free port that stands for `target_port`; faults: relay.py."""
        relay = Relay(target_port)
        self.call(relay.start())
        self._fakes.append(relay)
        return relay

    def etcd_proxy(self, target_port: int) -> EtcdProxy:
        """A proxy on a free port that stands for an etcd member's; faults: etcd_proxy.py."""
        proxy = EtcdProxy(target_port)
        self.call(proxy.start())
        self._fakes.append(proxy)
        return proxy

    def apply(self, engine: FakeEngine, **change: Any) -> None:
        """Merge settings into an engine."""
        self.call(engine.apply(change))

    def records(self, engine: FakeEngine) -> list[Record]:
        """What has reached the engine, in order."""
        return self.call(_copy(engine))

    def _reserve(self, port: int) -> None:
        """Bind without listening: connections are refused and nobody else takes the port."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        self._reserved.append(sock)

    def close(self) -> None:
        for fake in reversed(self._fakes):
            self.call(fake.close())
        self.call(_end_tasks())
        for sock in self._reserved:
            sock.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def _make(name: str, settings: Json) -> FakeEngine:
    return FakeEngine(name, Settings(**settings))


async def _make_registry() -> FakeRegistry:
    return FakeRegistry()


async def _end_tasks() -> None:
    """End what is still under way: a connection accepted at the last moment, an inner wait."""
    await asyncio.sleep(0)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    # What a router's probe opened while the server closed belongs to no fake: asyncio keeps a
    # register of all transports, which it does not publish.
    for transport in list(getattr(asyncio.get_running_loop(), "_transports", {}).values()):
        transport.abort()
    for _ in range(10):
        await asyncio.sleep(0)  # closed transports let go of their sockets in the next turns


async def _copy(engine: FakeEngine) -> list[Record]:
    return list(engine.records)


@contextlib.contextmanager
def farm() -> Iterator[Farm]:
    """`with farm() as fakes: engine = fakes.engine(models=["m"])`."""
    made = Farm()
    try:
        yield made
    finally:
        made.close()
