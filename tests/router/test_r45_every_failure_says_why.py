"""R45: every failure says why: one log line and one count for each, the same in every book."""

import contextlib
import json
import signal
from collections import Counter
from collections.abc import Callable

import pytest

from rig import accounts
from rig.accounts import Accounts, Failure
from rig.failing import FLAGS, Scene, entry, scene_of
from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import closed_loop
from rig.load_client import chat_call
from rig.processes import wait_until
from rig.raw_client import RawClient, request_bytes
from rig.routers import SLOW, Router, StartRouter

COUNTS = [1, pytest.param(20, marks=SLOW)]


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


Fault = tuple[Failure, Callable[[Scene], None]]


def of_client(code: str, inject: Callable[[Scene], None]) -> Fault:
    return Failure("", "client", code), inject


def of_choice(code: str, inject: Callable[[Scene], None]) -> Fault:
    """Of the choice of an engine: there is none for this request."""
    return Failure("", "choose", code), inject


POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
FAULTS: dict[str, Fault] = {
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
    "client leaves in its head": of_client("client_closed", cut_short(POST)),
    "client leaves in its body": of_client(
        "client_closed", cut_short(POST + b"Content-Length: 10\r\n\r\n12")
    ),
    "malformed head": of_client("invalid_request", refused(b"GET / HTTP/1.1\nHost: a\n\n", 400)),
    "head not in time": of_client("invalid_request", refused(POST, 408)),
    "body not in time": of_client(
        "invalid_request", refused(POST + b"Content-Length: 10\r\n\r\n12", 408)
    ),
    "body too large": of_client(
        "body_too_large", refused(POST + b"Content-Length: 99999999999\r\n\r\n", 413)
    ),
    "no engine": (
        Failure("down", "connect", "no_healthy_engine"),
        lambda scene: scene.calls(chat_call("down"), status=503),
    ),
    "unknown model": of_choice(
        "model_not_found", lambda scene: scene.calls(chat_call("unknown"), status=404)
    ),
    "model that is no text": of_choice(
        "invalid_request",
        refused(request_bytes("POST", "/v1/embeddings", body=b'{"model": 1}'), 400),
    ),
    "closed path": of_choice("path_not_allowed", refused(request_bytes("POST", "/sleep"), 404)),
    "wrong method at an own endpoint": of_choice(
        "invalid_request", refused(request_bytes("POST", "/health"), 405)
    ),
    "unknown model at an own endpoint": of_choice(
        "model_not_found", refused(request_bytes("GET", "/v1/models/unknown"), 404)
    ),
}


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
            # Or the next fault would take this one's request, which still ends, for its own.
            wait_until(lambda: scene.engine.in_flight == 0, what=f"{name}: the engine idle")
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
