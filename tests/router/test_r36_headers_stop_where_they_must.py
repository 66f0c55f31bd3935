"""R36: headers stop where they must, in both directions, whatever they are called."""

import json

import pytest

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import static
from rig.processes import free_port
from rig.raw_client import RawClient, Response, request_bytes
from rig.routers import Router, StartRouter
from rig.wire import Headers

HOP_BY_HOP: Headers = (
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Authorization", "Basic x"),
    ("Proxy-Authenticate", "Basic"),
    ("Proxy-Connection", "keep-alive"),
    ("TE", "gzip"),
    ("Trailer", "X-Late"),
    ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA"),
)
# Fields that Connection names must go; naming these must not remove what the message needs.
NEEDED = ("Content-Type", "Host", "Content-Length", "Authorization")


def ask(router: Router, headers: Headers, script: object) -> Response:
    fields = (*headers, ("x-fake-script", json.dumps(script)))
    with RawClient(router.url) as client:
        client.send(request_bytes("POST", "/v1/chat/completions", fields, b'{"model":"m"}'))
        return client.read("POST")


def leaked(names: list[str], fields: Headers) -> list[str]:
    present = {name.lower() for name, _ in fields}
    return [name for name in names if name.lower() in present]


def test_hop_by_hop_fields_end_at_the_router_in_both_directions(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine))
    names = [name for name, _ in HOP_BY_HOP]
    answer = ask(router, HOP_BY_HOP, {"headers": [list(pair) for pair in HOP_BY_HOP]})
    received = fakes.records(engine)[-1].request.head.headers
    assert answer.status == 200
    assert leaked(names, received) == []
    assert leaked(names, answer.headers) == []


def test_every_field_that_connection_names_ends_at_the_router(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine))
    named = [f"X-Named-{number}" for number in range(20)]
    fields: Headers = (
        ("Connection", ", ".join(named[:10]).upper()),
        *((name, "secret") for name in named),
        ("Connection", " ,".join(named[10:])),
        ("X-Kept", "1"),
    )
    answer = ask(router, fields, {"headers": [list(pair) for pair in fields]})
    received = fakes.records(engine)[-1].request.head
    assert answer.status == 200
    assert leaked(named, received.headers) == []
    assert leaked(named, answer.headers) == []
    assert received.get("x-kept") == answer.get("x-kept") == "1"


def test_a_secret_value_never_reaches_the_other_side_in_any_field(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine))
    canary = "canary-5f3a"
    fields: Headers = (("Connection", "X-Mine"), ("X-Mine", canary), ("Proxy-Token", canary))
    fakes.apply(engine, script={"headers": [list(pair) for pair in fields]})
    with RawClient(router.url) as client:
        client.send(request_bytes("POST", "/v1/chat/completions", fields, b'{"model":"m"}'))
        answer = client.read("POST")
    assert answer.status == 200
    assert canary.encode() not in fakes.records(engine)[-1].request.raw
    assert canary not in str(answer.headers)


def test_naming_what_the_message_needs_does_not_change_its_framing(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine))
    answer = ask(router, (("Connection", ", ".join(NEEDED)),), {})
    request = fakes.records(engine)[-1].request
    assert answer.status == 200
    assert request.body == b'{"model":"m"}'
    assert request.head.all("host") == [f"127.0.0.1:{engine.port}"]
    assert engine.server.errors == []


CONTROLS = [number for number in (*range(32), 127) if chr(number) != "\t"]


def test_no_control_byte_passes_in_a_value_in_either_direction(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine), flags={"max-errors": 0})
    verdicts = []
    for number in CONTROLS:
        value = f"a{chr(number)}Set-Cookie: evil=1"
        raw = f"HTTP/1.1 200 OK\r\nX-Odd: {value}\r\nContent-Length: 2\r\n\r\nok"
        seen = len(fakes.records(engine))
        asked = ask(router, (("X-Odd", value),), {}).status
        answered = ask(router, (), {"raw": raw}).status
        verdicts.append((number, asked, len(fakes.records(engine)) - seen, answered))
    wrong = [verdict for verdict in verdicts if verdict[1:] != (400, 1, 502)]
    print(f"R36 {router.name}: {len(CONTROLS)} control bytes, {len(wrong)} let through")
    assert wrong == []


def test_a_ring_of_routers_ends_in_at_most_three_hops(start: StartRouter) -> None:
    ports = [free_port(), free_port()]
    flags = [{"router-port": port} for port in ports]
    routers = [start([elsewhere(ports[1])], flags=flags[0], healthy="0/1")]
    routers.append(start([elsewhere(ports[0])], flags=flags[1]))
    routers[0].wait_healthy("1/1")
    answer = ask(routers[0], (), {})
    hops = 1 + sum(router.service("next")["request_count"] for router in routers)
    print(f"R36 {start.name}: a ring of two routers answers {answer.status} after {hops} hops")
    assert answer.status == 508
    assert json.loads(answer.body)["error"]["code"] == "loop_detected"
    assert hops <= 3


def elsewhere(port: int) -> dict[str, object]:
    """Another router, as if it were an engine."""
    metadata = {"models": ["m"], "health_url": f"http://127.0.0.1:{port}/health"}
    return {"name": "next", "host": "127.0.0.1", "port": port, "metadata": metadata}


CLAIMED = (("X-Forwarded-For", "6.6.6.6"), ("Forwarded", "for=6.6.6.6"), ("X-Real-IP", "6.6.6.6"))


@pytest.mark.parametrize(("trusted", "told"), [("10.0.0.0/8", False), ("127.0.0.0/8", True)])
def test_only_a_trusted_proxy_says_who_the_client_is(
    start: StartRouter, fakes: Farm, engine: FakeEngine, trusted: str, told: bool
) -> None:
    router = start(static(engine), flags={"trusted-proxies": trusted})
    assert ask(router, CLAIMED, {}).status == 200
    received = fakes.records(engine)[-1].request.head
    assert received.get("x-forwarded-for") == ("6.6.6.6, 127.0.0.1" if told else "127.0.0.1")
    assert received.get("x-real-ip") == ("6.6.6.6" if told else None)
    assert received.get("forwarded") == ("for=6.6.6.6" if told else None)
