"""Probes against real HTTP servers on loopback."""

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from infinilm_registry.entry import LeaseTerms, ProbeResult
from infinilm_registry.probes import GuardedResolver, Prober, ProbeSettings
from infinilm_registry.table import ServiceTable
from infinilm_registry.watch import Watch
from rig.processes import free_port, wait_until

Body = Callable[..., dict[str, Any]]
FAST = ("--health-interval", "0.1", "--health-timeout", "0.5")


class Engine(ThreadingHTTPServer):
    """Answers GETs as `answers` says (path to status; 302 leads to `elsewhere`); counts hits."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Answer)
        self.port = port
        self.answers: dict[str, int] = {}
        self.elsewhere = ""
        self.hits: list[str] = []
        self.hold = threading.Event()
        self.hold.set()


class Answer(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        self.server.hits.append(self.path)
        self.server.hold.wait(20)
        self.send_response(self.server.answers.get(self.path, 404))
        self.send_header("Location", self.server.elsewhere)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[Callable[..., Engine]]:
    """`engine({path: status}, port=free)` serves until the test's end."""
    engines: list[Engine] = []

    def make(answers: dict[str, int], port: int | None = None) -> Engine:
        server = Engine(free_port() if port is None else port)
        server.answers = answers
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        engines.append(server)
        return server

    yield make
    for server in engines:
        server.hold.set()
        server.shutdown()
        server.server_close()


def healthy(registry: Any, name: str = "engine") -> bool:
    return bool(registry.get(f"/services/{name}")["is_healthy"])


def test_three_failed_probes_take_a_service_down_and_two_good_ones_bring_it_back(
    shared: Any, engine: Any, body: Body
) -> None:
    server, registry = engine({"/health": 200}), shared
    registry.register(body("flaps", port=server.port, heartbeat_interval=10))

    def probe() -> tuple[str, bool]:
        answer = registry.get("/services/flaps/health")
        return answer["health_status"], answer["is_healthy"]

    assert probe() == ("healthy", True)
    server.answers["/health"] = 503
    assert [probe() for _ in range(3)] == [("unhealthy", True)] * 2 + [("unhealthy", False)]
    assert "flaps" not in registry.names("?healthy=true")
    server.answers["/health"] = 200
    assert [probe() for _ in range(2)] == [("healthy", False), ("healthy", True)]


def test_the_loop_notices_death_and_return_and_wakes_watchers(
    start: Any, engine: Any, body: Body
) -> None:
    server, registry = engine({"/health": 200}), start(*FAST)
    registry.register(body(port=server.port))
    wait_until(lambda: registry.get("/services/engine")["health_status"] == "healthy")
    revision = registry.get("/services")["revision"]
    server.answers["/health"] = 500
    answer = registry.call("GET", f"/services?healthy=true&since={revision}&wait=20")
    assert answer.status_code == 200
    assert answer.json()["services"] == []
    server.answers["/health"] = 200
    wait_until(lambda: healthy(registry), what="return")


def test_an_engine_is_probed_at_its_babysitter(shared: Any, engine: Any, body: Body) -> None:
    port, registry = free_port(), shared
    own, babysitter = engine({"/health": 200}, port), engine({"/health": 503}, port + 1)
    registry.register(body("kept", port=port, metadata={"type": "openai-api"}))
    assert registry.get("/services/kept/health")["health_status"] == "unhealthy"
    assert (babysitter.hits, own.hits) == (["/health"], [])


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/models"])
def test_an_engine_without_babysitter_answers_for_itself(
    shared: Any, engine: Any, body: Body, path: str
) -> None:
    server, registry = engine({path: 200}), shared
    registry.register(body("alone", port=server.port, metadata={"type": "openai-api"}))
    assert registry.get("/services/alone/health")["health_status"] == "healthy"


def test_health_url_overrides_the_place(shared: Any, engine: Any, body: Body) -> None:
    server, registry = engine({"/alive": 200}), shared
    url = f"http://127.0.0.1:{server.port}/alive"
    registry.register(body("elsewhere", metadata={"type": "openai-api", "health_url": url}))
    assert registry.get("/services/elsewhere/health")["health_status"] == "healthy"
    assert server.hits == ["/alive"]


def test_r34_redirects_and_environment_proxies_are_never_followed(
    start: Any, engine: Any, body: Body
) -> None:
    canary, server = engine({"/": 200}), engine({"/health": 302})
    server.elsewhere = f"http://127.0.0.1:{canary.port}/"
    proxy = f"http://127.0.0.1:{canary.port}"
    registry = start(
        env={"HTTP_PROXY": proxy, "http_proxy": proxy, "ALL_PROXY": proxy, "NO_PROXY": ""}
    )
    registry.register(body(port=server.port))
    assert registry.get("/services/engine/health")["health_status"] == "unhealthy"
    assert server.hits == ["/health"]
    assert canary.hits == []


def test_questions_at_the_same_time_are_one_probe(start: Any, engine: Any, body: Body) -> None:
    server, registry = engine({"/health": 200}), start("--health-timeout", "20")
    registry.register(body(port=server.port))
    server.hold.clear()
    answers: list[str] = []

    def ask() -> None:
        with registry.session.__class__() as session:
            path = f"{registry.url}/services/engine/health"
            answers.append(session.get(path, timeout=20).json()["health_status"])

    askers = [threading.Thread(target=ask) for _ in range(5)]
    for asker in askers:
        asker.start()
    wait_until(lambda: server.hits)
    server.hold.set()
    for asker in askers:
        asker.join(20)
    assert answers == ["healthy"] * 5
    # An asker that came after the answer starts a second probe; five would be no sharing.
    assert len(server.hits) < 5


def test_a_probe_without_answer_ends_at_its_timeout(start: Any, engine: Any, body: Body) -> None:
    server, registry = engine({"/health": 200}), start("--health-timeout", "0.3")
    registry.register(body(port=server.port))
    server.hold.clear()
    assert registry.get("/services/engine/health")["health_status"] == "unhealthy"


def test_an_engine_registered_by_hand_stays_while_it_answers_probes(
    start: Any, engine: Any, body: Body
) -> None:
    server = engine({"/health": 200})
    limits = ("--heartbeat-timeout", "0.6", "--removal-timeout", "0.8", "--cleanup-interval", "0.1")
    registry = start(*FAST, *limits)
    registry.register(body("answers", port=server.port))
    registry.register(body("silent"))
    wait_until(lambda: registry.names() == {"answers"}, what="removal of the silent one")
    beats = registry.get("/services/answers")["last_heartbeat"]
    wait_until(lambda: registry.get("/services/answers")["last_heartbeat"] > beats + 1)
    assert healthy(registry, "answers")


def test_r34_a_name_that_leads_elsewhere_now_is_not_called() -> None:
    async def addresses(*networks: str) -> list[str]:
        resolver = GuardedResolver(tuple(map(ip_network, networks)))
        try:
            return [found["host"] for found in await resolver.resolve("localhost", 80)]
        finally:
            await resolver.close()

    assert "127.0.0.1" in asyncio.run(addresses())
    assert asyncio.run(addresses("127.0.0.0/8")) == ["127.0.0.1"]
    with pytest.raises(OSError, match="no address that may be called"):
        asyncio.run(addresses("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("answers", "held", "expected"),
    [
        ({"/health": 200}, False, ProbeResult.GOOD),
        ({"/health": 503}, False, ProbeResult.BAD),
        ({}, False, ProbeResult.BAD),
        ({"/health": 200}, True, ProbeResult.SILENT),
        (None, False, ProbeResult.REFUSED),
    ],
    ids=["good", "bad", "nothing served", "silent", "refused"],
)
def test_a_probe_tells_refusal_from_silence_and_from_a_bad_answer(
    engine: Any, service: Any, answers: dict[str, int] | None, held: bool, expected: ProbeResult
) -> None:
    if answers is None:
        port = free_port()
    else:
        server = engine(answers)
        port = server.port
        if held:
            server.hold.clear()

    async def probe() -> ProbeResult:
        table = ServiceTable(LeaseTerms(), Watch(0))
        prober = Prober(table, ProbeSettings(3600, 0.5))
        url = f"http://127.0.0.1:{port}"
        try:
            return await prober.probe_now(service(port=port, url=url))
        finally:
            await prober.close()

    assert asyncio.run(probe()) is expected


@pytest.fixture
def own_certificate(tmp_path: Path) -> ssl.SSLContext:
    """TLS with a certificate that nobody trusts."""
    files = ("-keyout", tmp_path / "key.pem", "-out", tmp_path / "certificate.pem")
    make = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1")
    subprocess.run([*make, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    return context


@pytest.mark.parametrize("fault", ["unknown certificate", "no TLS", "broken off"])
def test_where_tls_does_not_come_about_something_lives(
    service: Any, own_certificate: ssl.SSLContext, fault: str
) -> None:
    def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if fault == "no TLS":
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def probe() -> ProbeResult:
        context = own_certificate if fault == "unknown certificate" else None
        prober = Prober(ServiceTable(LeaseTerms(), Watch(0)), ProbeSettings(3600, 20))
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            try:
                return await prober.probe_now(service(port=port, url=f"https://127.0.0.1:{port}"))
            finally:
                await prober.close()

    assert asyncio.run(probe()) is ProbeResult.BAD
