"""R35: two parties never disagree where a request ends.

The payloads are those of conformance/cases/bad_requests.json, which says what must become of each.
Here each goes alone, one byte at a time, and between two good requests that were sent with it:
either it is refused and the connection ends, with nothing behind it answered, or it is forwarded;
and the engine, a strict parser, sees exactly as many requests as were answered.

Bad responses are those of conformance/cases/bad_responses.json. Here each comes whole, one byte at
a time, and with a good answer behind it: it is a 502, and its connection is never used again.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rig.engine_script import Json
from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import static
from rig.load_client import chat_call
from rig.raw_client import RawClient, Response, request_bytes
from rig.routers import ONE_POOL, Router, StartRouter
from rig.wire import WireError
from runner.cases import load_cases
from runner.exchange import wire_of
from runner.world import REPEAT

GOOD = request_bytes("POST", "/v1/chat/completions", (("X-Good", "1"),), b'{"model":"m"}')
WAYS = ("alone", "byte by byte", "between two others")
MOST_BYTES = 4000  # of payloads that are sent byte by byte


@dataclass(frozen=True)
class Payload:
    """Bytes to send, and the status that the rules of docs/HTTP.md give them."""

    name: str
    wire: bytes
    status: int

    @property
    def refused(self) -> bool:
        return self.status >= 400


def payloads() -> Iterator[Payload]:
    for case in load_cases():
        if case.feature != "bad_requests" or "flags" in case.setup:
            continue
        for number, step in enumerate(case.steps):
            if "request" not in step or "status" not in step["expect"]:
                continue
            request = {key: _repeated(value) for key, value in step["request"].items()}
            yield Payload(f"{case.name} ({number})", wire_of(request), step["expect"]["status"])


def _repeated(value: object) -> object:
    if not isinstance(value, str):
        return value
    return REPEAT.sub(lambda match: match[1] * int(match[2]), value)


def method_of(wire: bytes) -> str:
    return wire.lstrip(b"\r\n").split(b" ", 1)[0].decode("latin-1")


def answers(client: RawClient, methods: list[str]) -> list[int]:
    """The statuses that come back until the connection ends or all requests are answered."""
    statuses: list[int] = []
    with contextlib.suppress(ConnectionError):
        statuses.extend(client.read(method).status for method in methods)
    return statuses


def send(router: Router, payload: Payload, way: str) -> list[str]:
    """Send a payload; what is wrong with the answers."""
    expected, methods = [payload.status], [method_of(payload.wire)]
    wire = payload.wire
    if way == "between two others":
        wire = GOOD + wire + GOOD
        expected = [200, payload.status] + ([] if payload.refused else [200])
        methods = ["POST", *methods, "POST"]
    with RawClient(router.url) as client:
        client.send(wire, bytewise=way == "byte by byte")
        try:
            statuses = answers(client, methods)
            ending = client.read_end(5) if payload.refused else "open"
        except (TimeoutError, WireError) as error:
            return [f"{type(error).__name__}: {error}"]
    found = [] if statuses == expected else [f"answered {statuses} instead of {expected}"]
    if payload.refused and ending == "open":
        found.append("the connection stayed open")
    return found


def seen(fakes: Farm, engine: FakeEngine) -> tuple[int, list[str]]:
    """Requests that reached the engine, and what its parser did not like."""
    return len(fakes.records(engine)), [str(error) for error in engine.server.errors]


def test_every_odd_request_is_refused_or_forwarded_as_exactly_one(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine))
    sent, wanted, faults = 0, 0, {}
    odd = list(payloads())
    for payload in odd:
        for way in WAYS:
            if way == "byte by byte" and len(payload.wire) > MOST_BYTES:
                continue
            before, _ = seen(fakes, engine)
            found = send(router, payload, way)
            after, errors = seen(fakes, engine)
            good = (not payload.refused) + (way == WAYS[2]) * (1 if payload.refused else 2)
            if after - before != good:
                found.append(f"the engine saw {after - before} requests instead of {good}")
            sent, wanted = sent + 1, wanted + good
            if found or errors:
                faults[f"{payload.name}, {way}"] = found + errors
    refused = sum(payload.refused for payload in odd)
    print(
        f"R35 {router.name}: {len(odd)} payloads ({refused} to be refused) in {sent} exchanges,"
        f" {len(faults)} disagreements"
    )
    assert faults == {}
    assert len(fakes.records(engine)) == wanted, "a request came late"
    assert refused >= 72


def bad_answers() -> Iterator[tuple[str, str]]:
    """Answers that must become a 502: name and wire text."""
    for case in load_cases():
        for step in case.steps if case.feature == "bad_responses" else ():
            raw = step.get("request", {}).get("script", {}).get("raw")
            if isinstance(raw, str) and step["expect"]["status"] == 502:
                yield case.name, raw


ANSWER = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
COMINGS: dict[str, Callable[[str], list[str]]] = {
    "whole": lambda raw: [raw],
    "byte by byte": list,
    "before a good one": lambda raw: [raw + ANSWER],
}


def test_every_odd_answer_is_a_502_and_ends_its_connection(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine), flags={"max-errors": 0, **ONE_POOL[start.name]})
    odd, exchanges, faults = list(bad_answers()), 0, {}
    for name, raw in odd:
        for how, pieces in COMINGS.items():
            script = {"raw": pieces(raw), "keep": True}
            answers = [proxied(router, script), proxied(router, {})]
            used = [record.request.connection for record in fakes.records(engine)[-2:]]
            exchanges += 1
            statuses = [answer.status for answer in answers]
            if statuses != [502, 200] or used[0] == used[1] or b"evil" in answers[1].body:
                faults[f"{name}, {how}"] = f"{statuses} on connections {used}"
    print(
        f"R35 {router.name}: {len(odd)} bad answers in {exchanges} exchanges,"
        f" {len(faults)} of them believed"
    )
    assert faults == {}
    assert len(odd) >= 15


def proxied(router: Router, script: Json) -> Response:
    call = chat_call(script=script)
    with RawClient(router.url) as client:
        client.send(request_bytes(call.method, call.target, call.headers, call.body))
        return client.read("POST")
