"""R38: giant, deep or odd input is cheap and never a 500."""

import contextlib
import gzip
import json

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import static
from rig.raw_client import RawClient, request_bytes
from rig.routers import Router, StartRouter

MEBIBYTE = 1 << 20
ODD_BODIES = {
    "depth 100,000": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"m"}',
    "depth in objects": b'{"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b',"model":"m"}',
    "unclosed depth": b'{"x":' + b"[" * 500_000,
    "giant number": b'{"x":' + b"9" * 1_000_000 + b',"model":"m"}',
    "many members": b'{"model":"m",' + b",".join(b'"k%d":1' % n for n in range(80_000)) + b"}",
    "many models": b"{" + b",".join([b'"model":"m"'] * 80_000) + b"}",
    "lone surrogates": b'{"x":"\\ud800\\udfff\\ud800","model":"m"}',
    "not a number": b'{"x":NaN,"y":-Infinity,"model":"m"}',
    "byte order mark": b'\xef\xbb\xbf{"model":"m"}',
    "invalid UTF-8": b'{"x":"\xff\xfe\xc0\x80","model":"m"}',
    "escapes": b'{"x":"' + b'\\"' * 450_000 + b'","model":"m"}',
    "backslashes": b'{"x":"' + b"\\\\" * 450_000 + b'","model":"m"}',
    "quotes": b'{"x":[' + b",".join([b'""'] * 300_000) + b'],"model":"m"}',
    "unclosed string": b'{"model":"m","x":"' + b"a" * 900_000,
    "unclosed escapes": b'{"model":"m","x":"' + b'\\"' * 450_000,
    "blanks": b'{"x":1,' + b" " * 900_000 + b'"model":"m"}',
    "model is a list": b'{"model":["m"]}',
    "model is an object": b'{"model":{"m":1}}',
    "model is long": b'{"model":"' + b"m" * 900_000 + b'"}',
    "no JSON": b"\x00\x01\x02" * 300_000,
    "gzip bomb": gzip.compress(b"\x00" * (64 * MEBIBYTE)),
}


def test_odd_bodies_are_refused_or_forwarded_unchanged_and_cost_little(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine))
    with RawClient(router.url) as client:
        faults = {name: send_odd(router, client, body) for name, body in ODD_BODIES.items()}
    assert {name: fault for name, fault in faults.items() if fault} == {}
    forwarded = {record.request.body for record in fakes.records(engine)}
    assert forwarded <= set(ODD_BODIES.values())


def send_odd(router: Router, client: RawClient, body: bytes) -> list[str]:
    """Send an odd body; what was wrong with its answer or its cost."""
    cpu, memory = router.cpu(), router.memory()
    client.send(request_bytes("POST", "/v1/chat/completions", (), body))
    answer = client.read("POST")
    cpu, memory = router.cpu() - cpu, router.memory() - memory
    found = [f"{cpu:.2f} s of processor time"] if cpu > 0.1 else []
    found += [f"{memory} bytes of memory"] if memory > 3 * len(body) + 4 * MEBIBYTE else []
    if answer.status != 200 and not {"message", "type", "code"} <= set(error_of(answer.body)):
        found.append(f"an error of another shape: {answer.body[:200]!r}")
    if answer.status not in (200, 400, 404):
        found.append(f"status {answer.status}")
    return found


def error_of(body: bytes) -> dict[str, object]:
    error: dict[str, object] = json.loads(body)["error"]
    return error


def test_empty_lines_without_end_cost_little(start: StartRouter, engine: FakeEngine) -> None:
    router = start(static(engine))
    cpu = router.cpu()
    with RawClient(router.url) as client:
        for _ in range(16):
            client.send(b"\r\n" * 131_072)
        client.send(request_bytes("GET", "/health"))
        with contextlib.suppress(ConnectionError):
            assert client.read().status in (200, 400)
    assert router.cpu() - cpu <= 0.5


def test_bodies_over_the_limit_are_refused_before_they_fill_memory(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine), flags={"max-body-bytes": 2 * MEBIBYTE})
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
    before = router.memory()
    with RawClient(router.url) as client:
        client.send(head + b"Content-Length: 2097153\r\n\r\n")
        assert client.read("POST").status == 413
    with RawClient(router.url) as client:
        client.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(64):
            client.send(b"40000\r\n" + b"x" * 0x40000 + b"\r\n")
        answer = client.read("POST")
    assert answer.status == 413
    assert answer.get("x-infinilm-error") == "body_too_large"
    assert router.memory() - before <= 8 * MEBIBYTE
    assert fakes.records(engine) == []
