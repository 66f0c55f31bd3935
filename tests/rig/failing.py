"""A router in front of engines that have one fault each, and clients that have theirs (R45)."""

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rig.engine_script import Json
from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import closed_loop
from rig.load_client import Call, chat_call
from rig.processes import wait_until
from rig.raw_client import RawClient, request_bytes
from rig.routers import Router, StartRouter

FLAGS = {
    "access-log": "errors",
    "max-errors": 0,
    "proxy-connect-timeout": 2,
    "response-timeout": 0.8,  # of answers that are no streams
    "first-byte-timeout": 30,
    "idle-timeout": 1,
    "head-timeout": 0.8,
    "body-timeout": 0.8,
    "write-timeout": 0.8,
}
LARGE = 16_000_000  # bytes: more than lies between two sockets


class Sink:
    """An engine that takes connections, and of each request no more than `accept` says."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self._listener.settimeout(15)
        self.port: int = self._listener.getsockname()[1]

    def accept(self) -> socket.socket:
        """The next connection, once the request has begun to arrive on it."""
        taken, _ = self._listener.accept()
        taken.settimeout(15)
        assert taken.recv(1) == b"P"
        return taken

    def close(self) -> None:
        self._listener.close()


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that answers no SYN: the queue of its listener is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield listener.getsockname()[1]


@dataclass
class Scene:
    """A router in front of engines with one fault each; their probes all ask the good one."""

    router: Router
    fakes: Farm
    engine: FakeEngine
    sink: Sink
    count: int

    def calls(self, *calls: Call, status: int) -> None:
        """Send each call `count` times, all at once."""
        outcomes = closed_loop(self.router.url, list(calls) * self.count, 50)
        assert {outcome.status for outcome in outcomes} == {status}

    def each(self, what: Callable[[RawClient], None]) -> None:
        """Do it on `count` connections, one after the other."""
        for _ in range(self.count):
            with RawClient(self.router.url) as client:
                what(client)

    def send(self, client: RawClient, call: Call) -> None:
        client.send(request_bytes(call.method, call.target, call.headers, call.body))

    def failing(self, fault: Json, *, stream: bool = False, status: int = 502) -> None:
        self.calls(chat_call(stream=stream, script=fault), status=status)

    def sending(self, client: RawClient) -> socket.socket:
        """The engine's side of a large request that is on its way."""
        body = chat_call("sink").body.ljust(LARGE)
        head = request_bytes("POST", "/v1/chat/completions", (("Content-Length", str(LARGE)),))
        client.send(head + body)
        return self.sink.accept()

    def leaves_while_connecting(self, client: RawClient) -> None:
        self.send(client, chat_call("silent"))
        wait_until(lambda: self.router.service("silent")["in_flight"] == 1)
        client.__exit__()
        wait_until(lambda: self.router.service("silent")["in_flight"] == 0)

    def leaves_while_sending(self, client: RawClient) -> None:
        with self.sending(client):
            client.__exit__()
            wait_until(lambda: self.router.service("sink")["in_flight"] == 0)

    def leaves_before_the_first_byte(self, client: RawClient) -> None:
        self.send(client, chat_call(stream=True, script={"delay": 20}))
        wait_until(lambda: self.engine.in_flight == 1)
        client.__exit__()
        wait_until(lambda: self.engine.in_flight == 0)

    def leaves_in_the_stream(self, client: RawClient) -> None:
        stream = {"chunks": 10_000, "interval": 0.02}
        self.send(client, chat_call(stream=True, script={"stream": stream}))
        assert client.read_some()
        client.reset()

    def resets_while_sending(self, client: RawClient) -> None:
        taken = self.sending(client)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        taken.close()
        assert client.read().status == 502

    def stops_taking_the_request(self, client: RawClient) -> None:
        with self.sending(client):
            assert client.read().status == 504

    def takes_nothing(self) -> None:
        for _ in range(self.count):
            with RawClient(self.router.url, receive_buffer=4096) as client:
                self.send(client, chat_call(script={"size": LARGE}))
                wait_until(lambda: self.engine.in_flight == 1)
                wait_until(lambda: self.router.in_flight() == 0)


def entry(name: str, port: int, health: FakeEngine, model: str = "") -> dict[str, Any]:
    """An engine of a static list whose probes ask `health`."""
    url = f"http://127.0.0.1:{health.port + 1}/health"
    metadata = {"models": [model or name], "health_url": url}
    return {"name": name, "host": "127.0.0.1", "port": port, "metadata": metadata}


@contextlib.contextmanager
def scene_of(start: StartRouter, fakes: Farm, count: int) -> Iterator[Scene]:
    engine, sick = fakes.engine("e"), fakes.engine("sick", health=503)
    refusing = fakes.engine("refusing", listening=False)
    sink = Sink()
    with contextlib.closing(sink), silent_port() as silent:
        services = [
            entry("e", engine.port, engine, "m"),
            entry("refusing", refusing.port, engine),
            entry("silent", silent, engine),
            entry("sink", sink.port, engine),
            entry("down", refusing.port, sick),
            entry("first", refusing.port, engine, "pair"),
            entry("second", engine.port, engine, "pair") | {"backup": True},
            entry("third", refusing.port, engine, "gone"),
            entry("fourth", refusing.port, engine, "gone") | {"backup": True},
        ]
        router = start(services, flags=FLAGS, healthy="8/9")
        yield Scene(router, fakes, engine, sink, count)
