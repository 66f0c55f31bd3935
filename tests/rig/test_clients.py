"""Load client and fake registry: outcomes are told apart, watchers are woken."""

import asyncio
import json
import time

from rig.engine_script import Json, event
from rig.fake_registry import registration
from rig.farm import Farm
from rig.load_client import Call, LoadClient, Outcome, chat_call, kinds
from rig.processes import wait_until
from rig.raw_client import RawClient, ask, request_bytes

ERROR = {"error": {"message": "engine died", "type": "upstream_error", "code": "upstream_reset"}}


def send(url: str, calls: list[Call], concurrency: int = 4, timeout: float = 10) -> list[Outcome]:
    async def go() -> list[Outcome]:
        client = LoadClient(url, timeout)
        try:
            return await client.closed_loop(calls, concurrency)
        finally:
            await client.close()

    return asyncio.run(go())


def test_outcomes_are_told_apart(fakes: Farm) -> None:
    engine = fakes.engine()
    own_error = {"status": 503, "json": ERROR, "headers": {"x-infinilm-error": "overloaded"}}
    pieces = [event({"a": 1}).decode(), event(ERROR).decode(), "x"]
    told = {"pieces": pieces, "die": {"at": 2, "how": "fin"}}
    scripts: list[Json] = [
        {},
        {"stream": {"chunks": 3}},
        own_error,
        told,
        {"status": 503},
        {"stream": {}, "die": {"at": 2, "how": "clean"}},
        {"stream": {}, "die": {"at": 2, "how": "rst"}},
        {"delay": 5},
    ]
    calls = [chat_call(script=script) for script in scripts]
    outcomes = send(f"http://127.0.0.1:{engine.port}", calls, timeout=2)
    told_apart = [outcome.kind for outcome in outcomes]
    assert told_apart == [*["ok"] * 2, *["explained"] * 2, *["unexplained"] * 4]
    assert outcomes[-1].fault == "silent for 2 s"


def test_closed_loop_never_has_more_in_flight_than_asked(fakes: Farm) -> None:
    engine = fakes.engine()
    outcomes = send(f"http://127.0.0.1:{engine.port}", [chat_call(script={"delay": 0.2})] * 30, 5)
    assert kinds(outcomes) == {"ok": 30}
    assert engine.max_in_flight == 5
    assert engine.server.accepted == 5


def test_open_loop_counts_time_from_when_a_call_was_due(fakes: Farm) -> None:
    engine = fakes.engine()

    async def go() -> list[Outcome]:
        client = LoadClient(f"http://127.0.0.1:{engine.port}")
        try:
            return await client.open_loop([chat_call(script={"delay": 1})] * 10, rate=100)
        finally:
            await client.close()

    outcomes = asyncio.run(go())
    assert kinds(outcomes) == {"ok": 10}
    assert engine.max_in_flight == 10
    assert all(outcome.ended >= 1 for outcome in outcomes)


def test_every_event_has_the_time_at_which_it_came(fakes: Farm) -> None:
    engine = fakes.engine()
    late = {"pieces": ["data: 1\n\ndata: 2\n\n", {"text": "data: 3\n\n", "delay": 1}]}
    cut = {"pieces": ["data: 1\n\n", "data: 2"], "die": {"at": 2, "how": "fin"}}
    url = f"http://127.0.0.1:{engine.port}"
    times = [outcome.event_times for outcome in send(url, [chat_call(script=late)] * 2)]
    assert [len(one) for one in times] == [3, 3]
    assert all(one[0] == one[1] <= one[2] - 0.5 for one in times)
    assert len(send(url, [chat_call(script=cut)])[0].event_times) == 1


def test_a_registry_watcher_is_woken_by_a_change(fakes: Farm) -> None:
    registry = fakes.registry()
    before = json.loads(ask(registry.url, "GET", "/services?healthy=true").body)
    assert before["services"] == []
    with RawClient(registry.url) as watcher:
        target = f"/services?healthy=true&since={before['revision']}&wait=20"
        started = time.monotonic()
        watcher.send(request_bytes("GET", target))
        wait_until(lambda: len(registry.requests) == 2)
        fakes.call(registry.publish([registration("e", 1234)]))
        after = json.loads(watcher.read().body)
    assert time.monotonic() - started < 10
    assert [service["name"] for service in after["services"]] == ["e"]
    assert after["revision"] > before["revision"]


def test_a_registry_can_be_down_answer_rubbish_and_come_back(fakes: Farm) -> None:
    registry = fakes.registry()
    fakes.call(registry.misbehave(status=500))
    assert ask(registry.url, "GET", "/services").status == 500
    fakes.call(registry.down())
    fakes.call(registry.up())
    fakes.call(registry.misbehave())
    assert ask(registry.url, "GET", "/services").status == 200
