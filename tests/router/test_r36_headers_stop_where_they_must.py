"""R36: headers stop where they must, in both directions, whatever they are called."""

import json

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import static
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
