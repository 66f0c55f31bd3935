"""R38: giant, deep or odd input is cheap and never a 500."""

import contextlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import static
from rig.raw_client import RawClient, Response, request_bytes
from rig.routers import SLOW, Router, StartRouter

MEBIBYTE = 1 << 20


def bomb(size: int) -> bytes:
    """So many zeros, packed."""
    packer, block = zlib.compressobj(1, zlib.DEFLATED, 31), bytes(MEBIBYTE)
    return b"".join(packer.compress(block) for _ in range(size // MEBIBYTE)) + packer.flush()


def odd_bodies() -> dict[str, bytes]:
    return {
        "depth 100,000": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"m"}',
        "depth in objects": b'{"x":'
        + b'{"a":' * 100_000
        + b"1"
        + b"}" * 100_000
        + b',"model":"m"}',
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
        "gzip bomb": bomb(200 * MEBIBYTE),
    }


def large_bodies() -> dict[str, bytes]:
    members = b",".join(b'"k%d":1' % number for number in range(1_000_000))
    return {
        "a million members": b'{"model":"m",' + members + b"}",
        "a number of 60 MB": b'{"x":' + b"9" * 60_000_000 + b',"model":"m"}',
    }


@pytest.mark.parametrize("make", [odd_bodies, pytest.param(large_bodies, marks=SLOW)])
def test_odd_bodies_are_refused_or_forwarded_unchanged_and_cost_little(
    start: StartRouter, fakes: Farm, engine: FakeEngine, make: Callable[[], dict[str, bytes]]
) -> None:
    router = start(static(engine))
    bodies, costs, most = make(), {}, router.memory()
    with RawClient(router.url) as client:
        for name, body in bodies.items():
            costs[name] = cost_of(router, client, body, most)
            most += max(0, costs[name].memory)
    dearest = max(costs, key=lambda name: costs[name].cpu)
    print(
        f"R38 {router.name}: {len(costs)} odd bodies, at most {costs[dearest].cpu * 1e3:.0f} ms of"
        f" processor time ({dearest}) and"
        f" {max(cost.memory for cost in costs.values()) / 1e6:.1f} MB of memory"
    )
    faults = {name: faults_of(cost, len(bodies[name])) for name, cost in costs.items()}
    assert {name: fault for name, fault in faults.items() if fault} == {}
    forwarded = {record.request.body for record in fakes.records(engine)}
    assert forwarded <= set(bodies.values())


@dataclass(frozen=True)
class Cost:
    """An answer, and what it took: processor time in seconds, more memory in bytes."""

    answer: Response
    cpu: float
    memory: int


def cost_of(router: Router, client: RawClient, body: bytes, most: int) -> Cost:
    """Send a body; `most` is the most memory that the router has had before."""
    cpu = router.cpu()
    client.send(request_bytes("POST", "/v1/chat/completions", (), body))
    answer = client.read("POST")
    return Cost(answer, router.cpu() - cpu, router.memory() - most)


def faults_of(cost: Cost, size: int) -> list[str]:
    """What is wrong with an answer or its cost. Processor time comes in steps of 10 ms."""
    answer, allowed = cost.answer, 0.06 * max(1, size / MEBIBYTE)
    found = [f"{cost.cpu:.2f} s of processor time"] if cost.cpu > allowed else []
    found += [f"{cost.memory} bytes more"] if cost.memory > 3 * size + MEBIBYTE else []
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
    with RawClient(router.url) as client:  # a number of a gigabyte, to be read by nobody
        client.send(head + b'Content-Length: 1000000012\r\n\r\n{"x":99999')
        assert client.read("POST").status == 413
    assert answer.status == 413
    assert answer.get("x-infinilm-error") == "body_too_large"
    assert router.memory() - before <= 8 * MEBIBYTE
    assert fakes.records(engine) == []


def test_a_long_chunk_extension_is_refused_before_it_is_whole(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine))
    before = router.memory()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with RawClient(router.url) as client:
        client.send(head + b"1;" + b"x" * 200_000)
        answer = client.read("POST")
    assert answer.status == 400
    assert {"message", "type", "code"} <= set(error_of(answer.body))
    assert router.memory() - before <= 4 * MEBIBYTE
    assert fakes.records(engine) == []
