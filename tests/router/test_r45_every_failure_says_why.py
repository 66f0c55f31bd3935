"""R45: every failure says why: one log line and one count for each, the same in every book."""

import contextlib
import json
import signal
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from rig import accounts
from rig.accounts import Accounts, Failure
from rig.engine_script import Json
from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import closed_loop
from rig.load_client import Call, chat_call
from rig.processes import wait_until
from rig.raw_client import RawClient, request_bytes
from rig.routers import SLOW, Router, StartRouter

FLAGS = {
    "access-log": "errors",
    "max-errors": 0,
    "proxy-connect-timeout": 2,
    "response-timeout": 0.4,  # of answers that are no streams
    "first-byte-timeout": 30,
    "idle-timeout": 1,
    "head-timeout": 0.4,
    "body-timeout": 0.4,
    "write-timeout": 0.4,
}
LARGE = 16_000_000  # bytes: more than lies between two sockets
COUNTS = [1, pytest.param(20, marks=SLOW)]


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


def refused(wire: bytes, status: int) -> Callable[[Scene], None]:
    """Send bytes that the router refuses with this status."""

    def ask(client: RawClient) -> None:
        client.send(wire)
        assert client.read().status == status

    return lambda scene: scene.each(ask)


def cut_short(wire: bytes) -> Callable[[Scene], None]:
    """Send a part of a request and leave."""

    def leave(client: RawClient) -> None:
        client.send(wire)
        client.half_close()
        assert client.read_end() != "open"

    return lambda scene: scene.each(leave)


def closed_in_stream(how: str) -> Callable[[Scene], None]:
    script = {"stream": {"chunks": 5}, "die": {"at": 2, "how": how}}
    return lambda scene: scene.failing(script, stream=True, status=200)


def at_head(how: str, status: int = 502) -> Callable[[Scene], None]:
    return lambda scene: scene.failing({"die": {"at": "head", "how": how}}, status=status)


POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
FAULTS: dict[str, tuple[Failure, Callable[[Scene], None]]] = {
    "connection refused": (
        Failure("refusing", "connect", "connect_failed"),
        lambda scene: scene.calls(chat_call("refusing"), status=503),
    ),
    "connection timed out": (
        Failure("silent", "connect", "connect_failed"),
        lambda scene: scene.calls(chat_call("silent"), status=503),
    ),
    "reset while sending": (
        Failure("sink", "send", "upstream_reset"),
        lambda scene: scene.each(scene.resets_while_sending),
    ),
    "request not taken": (
        Failure("sink", "send", "first_byte_timeout"),
        lambda scene: scene.each(scene.stops_taking_the_request),
    ),
    "reset before the head": (Failure("e", "first_byte", "upstream_reset"), at_head("rst")),
    "no head in time": (Failure("e", "first_byte", "first_byte_timeout"), at_head("stall", 504)),
    "invalid head": (
        Failure("e", "first_byte", "upstream_invalid"),
        lambda scene: scene.failing({"raw": "HTTP/1.1 999 No\r\n\r\n"}),
    ),
    "answer of 5xx": (
        Failure("e", "first_byte", "engine_error"),
        lambda scene: scene.failing({"status": 500}, status=500),
    ),
    "cut stream": (Failure("e", "stream", "upstream_reset"), closed_in_stream("rst")),
    "clean end without [DONE]": (
        Failure("e", "stream", "upstream_reset"),
        closed_in_stream("clean"),
    ),
    "silent stream": (Failure("e", "stream", "idle_timeout"), closed_in_stream("stall")),
    "client leaves while connecting": (
        Failure("silent", "connect", "client_closed"),
        lambda scene: scene.each(scene.leaves_while_connecting),
    ),
    "client leaves while sending": (
        Failure("sink", "send", "client_closed"),
        lambda scene: scene.each(scene.leaves_while_sending),
    ),
    "client leaves before the first byte": (
        Failure("e", "first_byte", "client_closed"),
        lambda scene: scene.each(scene.leaves_before_the_first_byte),
    ),
    "client leaves in the stream": (
        Failure("e", "stream", "client_closed"),
        lambda scene: scene.each(scene.leaves_in_the_stream),
    ),
    "client takes nothing": (Failure("e", "stream", "client_timeout"), Scene.takes_nothing),
    "client leaves in its head": (
        Failure("", "client", "client_closed"),
        cut_short(POST),
    ),
    "client leaves in its body": (
        Failure("", "client", "client_closed"),
        cut_short(POST + b"Content-Length: 10\r\n\r\n12"),
    ),
    "malformed head": (
        Failure("", "client", "invalid_request"),
        refused(b"GET / HTTP/1.1\nHost: a\n\n", 400),
    ),
    "head not in time": (Failure("", "client", "invalid_request"), refused(POST, 408)),
    "body not in time": (
        Failure("", "client", "invalid_request"),
        refused(POST + b"Content-Length: 10\r\n\r\n12", 408),
    ),
    "body too large": (
        Failure("", "client", "body_too_large"),
        refused(POST + b"Content-Length: 99999999999\r\n\r\n", 413),
    ),
    "no engine": (
        Failure("down", "connect", "no_healthy_engine"),
        lambda scene: scene.calls(chat_call("down"), status=503),
    ),
    "unknown model": (
        Failure("", "choose", "model_not_found"),
        lambda scene: scene.calls(chat_call("unknown"), status=404),
    ),
    "model that is no text": (
        Failure("", "choose", "invalid_request"),
        refused(request_bytes("POST", "/v1/embeddings", body=b'{"model": 1}'), 400),
    ),
    "closed path": (
        Failure("", "choose", "path_not_allowed"),
        refused(request_bytes("POST", "/sleep"), 404),
    ),
    "wrong method at an own endpoint": (
        Failure("", "choose", "invalid_request"),
        refused(request_bytes("POST", "/health"), 405),
    ),
    "unknown model at an own endpoint": (
        Failure("", "choose", "model_not_found"),
        refused(request_bytes("GET", "/v1/models/unknown"), 404),
    ),
}


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


def check(router: Router, expected: Accounts, requests: int) -> None:
    """Log, /metrics and /stats all say exactly this, now and when the router has ended."""
    found = accounts.metrics(router)
    assert accounts.of_metrics(found) == expected
    stats = router.get("/stats")
    codes: Counter[str] = Counter()
    for failure, count in expected.failures.items():
        codes[failure.code] += count
    assert stats["failures"] == codes
    assert stats["retries"] == expected.retries.total()
    assert stats["requests"] == requests == accounts.total(found, "requests_total")
    for code, count in codes.items():
        assert accounts.total(found, "requests_total", code=code) == count, code
    assert router.program.stop() == 0
    assert accounts.of_log(router.program.lines) == expected


@pytest.mark.parametrize("count", COUNTS)
def test_each_fault_is_one_line_and_one_count_everywhere(
    start: StartRouter, fakes: Farm, count: int
) -> None:
    with scene_of(start, fakes, count) as scene:
        expected, retries = retried(scene.router)
        done = retries.total() // 2
        for name, (failure, inject) in FAULTS.items():
            inject(scene)
            expected[failure] += count
            await_failures(scene.router, expected, name)
        check(scene.router, Accounts(expected, retries), expected.total() + done)
        print(
            f"R45 {scene.router.name}: {len(FAULTS) + 1} kinds of faults, {expected.total()}"
            f" failures and {retries.total()} retried attempts: each is one line in the log,"
            " and one in every count of /stats and /metrics"
        )


def retried(router: Router) -> Accounts:
    """Calls whose first engine refuses: the second one serves half of them, and refuses half."""
    calls = [chat_call("pair"), chat_call("gone")] * 5  # few: retries have a budget
    outcomes = closed_loop(router.url, calls, 2)
    assert [outcome.status for outcome in outcomes] == [200, 503] * 5
    kinds = [Failure(name, "connect", "connect_failed") for name in ("fourth", "first", "third")]
    return Accounts(Counter({kinds[0]: 5}), Counter({kinds[1]: 5, kinds[2]: 5}))


def await_failures(router: Router, expected: Counter[Failure], name: str) -> None:
    """Return when these are counted: that a client left is known when its end has arrived."""
    found = [Counter[Failure]()]

    def equal() -> bool:
        found[0] = accounts.of_metrics(accounts.metrics(router)).failures
        return found[0] == expected

    with contextlib.suppress(AssertionError):
        wait_until(equal, 5)
    assert (found[0] - expected, expected - found[0]) == (Counter(), Counter()), name


def admitted(router: Router) -> RawClient:
    """A connection that is served; those that ended may count for a moment longer."""

    def served() -> RawClient | None:
        client = RawClient(router.url)
        client.send(request_bytes("GET", "/health"))
        if client.read().status == 200:
            return client
        client.__exit__()
        return None

    return wait_until(served)


def overloads(client: RawClient) -> int:
    client.send(request_bytes("GET", "/stats"))
    failures: dict[str, int] = json.loads(client.read().body)["failures"]
    assert set(failures) <= {"overloaded"}
    return failures.get("overloaded", 0)


def test_connections_over_the_limit_are_counted_and_told(
    start: StartRouter, engine: FakeEngine
) -> None:
    router = start([entry("e", engine.port, engine, "m")], flags={**FLAGS, "max-connections": 2})
    with admitted(router), admitted(router) as kept:
        before = overloads(kept)
        for _ in range(5):
            with RawClient(router.url) as third:
                third.send(request_bytes("GET", "/health"))
                assert third.read().get("x-infinilm-error") == "overloaded"
        assert overloads(kept) == before + 5
    assert router.program.stop() == 0
    over = Failure("", "client", "overloaded")
    assert accounts.of_log(router.program.lines) == Accounts(Counter({over: before + 5}), Counter())


@pytest.mark.parametrize("signals", [1, 2], ids=["the drain's limit", "a second signal"])
def test_what_a_stop_cuts_off_is_told(start: StartRouter, engine: FakeEngine, signals: int) -> None:
    drain = {"drain-delay": 0, "drain-timeout": 0.5 if signals == 1 else 60}
    flags = {**FLAGS, "idle-timeout": 30, "body-timeout": 30, **drain}
    router = start([entry("e", engine.port, engine, "m")], flags=flags)
    call = chat_call(stream=True, script={"stream": {"chunks": 10_000, "interval": 0.05}})
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(router.url)) for _ in range(4)]
        for client in clients[:3]:
            client.send(request_bytes(call.method, call.target, call.headers, call.body))
            assert client.read_some()
        clients[3].send(POST + b"Content-Length: 10\r\n\r\n12")
        wait_until(lambda: router.in_flight() == 3)
        for _ in range(signals):
            router.program.signal(signal.SIGTERM)
            router.program.wait_for_line("draining in_flight=3")
        answers = [client.read_end() for client in clients]
    assert router.program.wait(10) == 0
    assert "open" not in answers
    expected = Counter(
        {Failure("e", "stream", "draining"): 3, Failure("", "client", "draining"): 1}
    )
    assert accounts.of_log(router.program.lines).failures == expected


def test_lines_are_written_for_failures_alone_where_that_is_asked(
    start: StartRouter, engine: FakeEngine
) -> None:
    router = start([entry("e", engine.port, engine, "m")], flags=FLAGS)
    assert closed_loop(router.url, [chat_call()], 1)[0].status == 200
    assert router.program.stop() == 0
    assert [line for line in router.program.lines if "request id=" in line] == []
