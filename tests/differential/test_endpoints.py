"""R44: what the routers say themselves, field by field: endpoints, errors, configuration.

Both routers see the same engines and the same registry, so everything but times is equal.
Allowed difference, not asked for here: half of a surrogate pair (`"\\ud83d"`) in a configuration
file is shown as U+FFFD by Rust, whose strings can't hold it, and as it stands by Python.
"""
# ruff: noqa: E501 - tables are easier to read in long lines

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from differential.pair import argv_of
from rig.fake_registry import registration
from rig.farm import farm
from rig.processes import ROOT, Programs, free_port, programs, wait_until
from rig.raw_client import RawClient, Response, request_bytes
from rig.routers import ONE_POOL, Router, flag_list, write_static

NAMES = ("python", "rust")
TIMES = {"timestamp", "last_check", "started_at"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00\Z")
# Metrics that differ from one moment to the next.
MEASURED = re.compile(
    r"^(infinilm_router_(?:\w+_(?:bucket|sum|probes_total)\{.*\}|start_time_seconds|client_connections)) .+$",
    re.MULTILINE,
)
LIMIT = 0.4
FLAGS: dict[str, Any] = {
    "first-byte-timeout": LIMIT,
    "response-timeout": LIMIT,
    "idle-timeout": LIMIT,
    "head-timeout": LIMIT,
    "body-timeout": LIMIT,
    "max-body-bytes": 1000,
    "max-errors": 0,
    "drain-delay": 5,
    "state-dir": "none",
    "health-rise": 1,
}


@dataclass
class Routers:
    """Both routers in front of the same engines."""

    first: Router
    second: Router

    def ask(self, wire: bytes, method: str = "GET") -> tuple[Response, Response]:
        one, other = (_ask(router.url, wire, method) for router in (self.first, self.second))
        return one, other


def _ask(url: str, wire: bytes, method: str) -> Response:
    with RawClient(url) as client:
        client.send(wire)
        return client.read(method)


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routers]:
    folder = tmp_path_factory.mktemp("endpoints")
    with farm() as fakes, programs() as run:
        up = fakes.engine("up", models=["m", "org/m"])
        broken = fakes.engine("broken", models=["cut"])
        registry = fakes.registry()
        listed = [
            registration(
                "r1", up.port, models=("m", "r\u00e9/x"), weight=2.5, note={"a": [1, None, 2.0]}
            ),
            registration("nanny", up.port + 1, models=None, kind="InfiniLM"),
            registration("r2", free_port(), models=("dead",)),
        ]
        fakes.call(registry.publish(listed))
        static = [
            {"host": "127.0.0.1", "port": up.port, "metadata": {"model": "m2"}},
            {"name": "learnt", "host": "127.0.0.1", "port": up.port},
            {"name": "b", "host": "127.0.0.1", "port": broken.port, "metadata": {"models": ["cut"]}},
            {"name": "spare", "host": "127.0.0.1", "port": up.port, "backup": True, "weight": 0.5,
             "max_fails": 2, "fail_timeout": 3, "metadata": {"models": ["s", "m"], "x": 1e100}},
        ]  # fmt: skip
        made = [_start(run, name, folder, static, registry.url) for name in NAMES]
        for router in made:
            router.wait_healthy("5/6")
            wait_until(lambda url=router.url: b"org/m" in _ask(url, *_get("/v1/models")).body)  # type: ignore[misc]
        fakes.apply(broken, listening=False, sidecar=True)
        yield Routers(*made)


def _start(run: Programs, name: str, folder: Path, static: list[Any], registry: str) -> Router:
    flags = {
        **FLAGS,
        "static-services": write_static(folder / "static.json", static),
        "registry-url": registry,
        **ONE_POOL[name],
    }
    return Router(run, name, flags)


def _timeless(value: Any, key: str = "") -> Any:
    """The JSON without moments, measured times and ports; their form is checked."""
    if key in TIMES and value is not None:
        assert TIME.match(value), f"{key}: {value!r}"
        return "TIME"
    if key == "response_time":
        assert isinstance(value, float)
        return "SECONDS"
    if isinstance(value, dict):
        return {name: _timeless(item, name) for name, item in value.items()}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _shown(response: Response) -> dict[str, Any]:
    """Every part of an answer that must be equal."""
    kept = [
        (name.lower(), "ID" if name.lower() == "x-request-id" else value)
        for name, value in response.headers
        if name.lower() not in ("date", "content-length")
    ]
    text = response.body.decode()
    body = _timeless(json.loads(text)) if text.startswith("{") else MEASURED.sub(r"\1 N", text)
    return {
        "start": response.head.start,
        "headers": sorted(kept),
        "body": body,
        "whole": response.whole,
    }


def _get(target: str, method: str = "GET") -> tuple[bytes, str]:
    return request_bytes(method, target, (("Host", "a"),)), method


LOCAL = ["/health", "/status", "/stats", "/metrics", "/services", "/models", "/v1/models"]
ONE_MODEL = ["m", "org/m", "org%2Fm", "org%2fm", "r%C3%A9/x", "r%c3%a9%2Fx", "dead", "none", "", "m/", "%6d", "%zz", "%FF", "m?x=1", "s", "m2", "nanny", "+", "%22%3C"]  # fmt: skip
ENDPOINTS = [
    *(_get(target, method) for target in LOCAL for method in ("GET", "HEAD", "POST", "OPTIONS")),
    *(_get(f"{target}?a=b") for target in LOCAL),
    *(_get(f"{target}/") for target in LOCAL),
    *(_get(f"/v1/models/{model}") for model in ONE_MODEL),
]


@pytest.mark.parametrize("wire", ENDPOINTS, ids=lambda wire: wire[0].split(b" HTTP")[0].decode())
def test_own_endpoints_are_equal_field_by_field(routers: Routers, wire: tuple[bytes, str]) -> None:
    one, other = routers.ask(*wire)
    assert _shown(one) == _shown(other)


def _chat(model: object, script: dict[str, Any] | None = None, **more: Any) -> bytes:
    body = json.dumps({"model": model, **more}).encode()
    fields = (("Host", "a"), *((("x-fake-script", json.dumps(script)),) if script else ()))
    return request_bytes("POST", "/v1/chat/completions", fields, body)


# (what, the code, the request). `unauthorized` and `queue_timeout` are not made by any feature yet;
# `internal` and `overloaded` have no request that brings them about on a healthy router.
ERRORS: list[tuple[str, str, bytes]] = [
    ("a model that is no string", "invalid_request", _chat(1)),
    ("a bad head", "invalid_request", b"GET /health HTTP/1.1\r\n\r\n"),
    ("another version", "invalid_request", b"GET /health HTTP/2.0\r\nHost: a\r\n\r\n"),
    ("another method", "invalid_request", b"TRACE /health HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("no CRLF", "invalid_request", b"GET /health HTTP/1.1\nHost: a\n\n"),
    ("a head that stops", "invalid_request", b"GET /health HTTP/1.1\r\nHos"),
    ("a body that stops", "invalid_request", b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n1"),
    ("an upgrade", "invalid_request", b"GET /v1/x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: w\r\n\r\n"),
    ("an expectation", "invalid_request", b"GET /v1/x HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n"),
    ("a long target", "invalid_request", b"GET /" + b"x" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a long head", "invalid_request", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 17_000 + b"\r\n\r\n"),
    ("many fields", "invalid_request", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 100 + b"\r\n"),
    ("a large body", "body_too_large", _chat("m", text="x" * 1000)),
    ("a closed path", "path_not_allowed", _get("/sleep")[0]),
    ("an unknown model", "model_not_found", _chat("n\u00f6ne")),
    ("a model whose engine is down", "no_healthy_engine", _chat("dead")),
    ("an engine that refuses", "connect_failed", _chat("cut")),
    ("an engine that resets", "upstream_reset", _chat("m", {"die": {"at": "head", "how": "rst"}})),
    ("an engine that closes", "upstream_reset", _chat("m", {"die": {"at": "head", "how": "fin"}})),
    ("a bad answer", "upstream_invalid", _chat("m", {"raw": "HTTP/1.1 999 No\r\n\r\n"})),
    ("silence", "first_byte_timeout", _chat("m", {"die": {"at": "head", "how": "stall"}})),
    ("a silent stream", "first_byte_timeout", _chat("m", {"die": {"at": "head", "how": "stall"}}, stream=True)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "wire"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS]
)
def test_errors_are_equal_field_by_field(routers: Routers, code: str, wire: bytes) -> None:
    one, other = routers.ask(wire, "POST")
    assert one.get("x-infinilm-error") == code
    assert _shown(one) == _shown(other)


STREAM_ENDS = {"upstream_reset": "rst", "upstream_invalid": "partial", "idle_timeout": "stall"}


@pytest.mark.parametrize("code", STREAM_ENDS)
def test_error_events_are_equal_field_by_field(routers: Routers, code: str) -> None:
    script: dict[str, Any] = {"stream": {"chunks": 3}, "die": {"at": 2, "how": STREAM_ENDS[code]}}
    if code == "upstream_invalid":
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        script = {"raw": f"{head}9\r\ndata: 1\n\n\r\nnonsense\r\n", "keep": True}
    one, other = (_with_id(answer) for answer in routers.ask(_chat("m", script, stream=True)))
    assert f'"code":"{code}"' in one["body"]
    assert one == other


def _with_id(response: Response) -> dict[str, Any]:
    shown = _shown(response)
    shown["body"] = shown["body"].replace(response.get("x-request-id") or "-", "ID")
    return shown


def test_a_loop_is_told_with_the_same_fields(run: Programs, tmp_path: Path) -> None:
    answers = []
    for name in NAMES:
        port = free_port()
        metadata = {"models": ["m"], "health_url": f"http://127.0.0.1:{port}/health"}
        entry = {"name": "self", "host": "127.0.0.1", "port": port, "metadata": metadata}
        static = write_static(tmp_path / f"{name}.json", [entry])
        flags = {**FLAGS, "static-services": static, "router-port": port}
        router = Router(run, name, flags)
        # It probes itself, and the first time maybe before it listens.
        wait_until(lambda r=router: r.service("self")["last_check"], what="first probe")  # type: ignore[misc]
        router.wait_healthy("1/1")
        answers.append(_shown(_ask(router.url, _chat("m"), "POST")))
    assert answers[0]["body"]["error"]["code"] == "loop_detected"
    assert answers[0] == answers[1]


def test_a_router_that_stops_says_so_with_the_same_fields(run: Programs) -> None:
    answers = []
    for name in NAMES:
        router = Router(run, name, {"state-dir": "none", "drain-delay": 2})
        router.program.signal(15)
        router.program.wait_for_line("drain")
        answers.append([_shown(_ask(router.url, _get(target)[0], "GET")) for target in LOCAL])
    assert answers[0][0]["body"]["status"] == "draining"
    assert answers[0] == answers[1]


FILES: dict[str, str] = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "null": "null",
    "an empty object": "{}",
    "unknown keys": '{"router": {"prot": 1, "a": 2}, "x": {}}',
    "bad values": '{"router": {"port": 70000, "proxy_timeout": -1, "load_balancing_method": "best"}}',
    "wrong types": '{"router": [], "static_services": 3}',
    "odd numbers": '{"router": {"port": 8000.0, "proxy_timeout": 1e400, "proxy_connect_timeout": "3"}}',
    "not finite": '{"router": {"proxy_timeout": NaN, "proxy_connect_timeout": Infinity}}',
    "twice": '{"router": {"port": 1, "port": 2}}',
    "services": '{"static_services": {"services": [{"host": "h", "port": 0}, {"port": 9, "weigth": 1}, 3, {}]}}',
    "same names": '[{"name": "a", "host": "h", "port": 1}, {"name": "a", "host": "h", "port": 2}]',
    "unicode": '{"router": {"h\u00f6st": "\u00e9"}, "static_services": {"services": [{"name": "\u00fc", "host": "h", "port": 7}]}}',
    "registry": '{"router": {"registry_url": "ftp://x, http://a:0 ,,"}}',
}
FLAG_SETS: dict[str, list[str]] = {
    "defaults": [],
    "bad flags": ["--router-port", "x", "--policy", "best", "--health-interval", "0", "--nothing", "1"],
    "unit words": ["--health-interval", "5s", "--max-body-bytes", "1MiB", "--retry-on", "x,reset-before-headers"],
    "networks": ["--trusted-proxies", "10.0.0.0/8,::1,10.1.2.3/8,x", "--proxy-paths", "/a,b"],
    "no value": ["--host"],
    "extra word": ["serve"],
    "equals": ["--router-port=9", "--state-dir="],
    "all": ["--proxy-timeout", "7", "--idle-timeout", "1e-3", "--drain-delay", "0", "--access-log", "off"],
    "twice": ["--router-port", "1", "--router-port", "2"],
    "take over": ["--take-over"],
    "take over from": ["--take-over", "--handover", "x.sock"],
    "handover": ["--handover", "/run/x.sock", "--handover="],
    "missing file": ["--config", "missing.json", "--static-services", "missing.json"],
}  # fmt: skip


def _checked(name: str, words: list[str], folder: Path, **environment: str) -> tuple[int, Any, str]:
    done = subprocess.run(
        [*argv_of(name), "--check-config", *words],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    shown = json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout
    # argparse puts its usage, with the program's name, before what it has to say.
    return done.returncode, shown, done.stderr


@pytest.mark.parametrize("key", ["config", "static-services"])
@pytest.mark.parametrize("text", FILES.values(), ids=FILES.keys())
def test_configuration_files_are_read_and_refused_alike(
    tmp_path: Path, key: str, text: str
) -> None:
    (tmp_path / "c.json").write_text(text)
    first, second = (_checked(name, flag_list({key: "c.json"}), tmp_path) for name in NAMES)
    assert first == second


@pytest.mark.parametrize("words", FLAG_SETS.values(), ids=FLAG_SETS.keys())
def test_flags_are_read_and_refused_alike(tmp_path: Path, words: list[str]) -> None:
    first, second = (_checked(name, words, tmp_path) for name in NAMES)
    assert first == second


def test_the_shipped_configuration_is_read_alike(tmp_path: Path) -> None:
    folder = ROOT / "deployment_configs"
    files = [folder / "router_config.json", *sorted(folder.glob("*_services.json"))]
    for path in files:
        key = "config" if path.name == "router_config.json" else "static-services"
        words = [f"--{key}", str(path)]
        first, second = (_checked(name, words, tmp_path) for name in NAMES)
        assert first == second, path.name


def test_variables_are_read_alike(tmp_path: Path) -> None:
    for value in ("7", "0", "", "x", " 7 ", "1e3", "nan"):
        variables = {"PROXY_TIMEOUT_SECONDS": value, "CACHE_TYPE_ROUTING_THRESHOLD": value}
        first, second = (_checked(name, [], tmp_path, **variables) for name in NAMES)
        assert first == second, value
