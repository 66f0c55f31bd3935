"""R9: a router that takes over the port of the one before loses no connection."""

import asyncio
import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from rig.fake_engine import FakeEngine
from rig.fake_registry import registration
from rig.farm import Farm
from rig.flows import closed_loop, static
from rig.handover import (
    HEALTH,
    handover_flags,
    has_listener,
    services_file,
    successor,
    waiting_successor,
)
from rig.load_client import LoadClient, chat_call
from rig.processes import Programs, wait_until
from rig.raw_client import RawClient, ask, request_bytes
from rig.routers import SLOW, Router, StartRouter, router_names
from rig.storm import storm


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, Any]:
    return handover_flags(tmp_path)


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=SLOW)])
def test_no_connection_is_lost_when_a_router_takes_over(
    start: StartRouter, run: Programs, engine: FakeEngine, flags: dict[str, Any], times: int
) -> None:
    services = static(engine)
    router = first = start(services, flags={**flags, "drain-delay": 0.5})
    words = {**flags, "drain-delay": 0.5, "static-services": services_file(router)}
    kinds = router_names()
    with storm(router.url, HEALTH) as blowing:
        for number in range(times):
            blowing.wait(50)
            other = kinds[(kinds.index(router.name) + 1) % len(kinds)]
            old, router = router, successor(router, run, words, other)
            assert old.program.wait(20) == 0, old.program.output
            old.program.wait_for_line("handed over in_flight=")
            blowing.wait(50)
            assert router.url == first.url, number
        answers = blowing.end()
    print(
        f"R9 {first.name}: {times} routers took over the port, {answers.total()} connections"
        f" meanwhile, {answers.total() - answers['200']} lost"
    )
    assert answers == {"200": answers.total()}


@pytest.mark.parametrize("other", router_names())
def test_streams_and_kept_connections_live_across_the_handover(
    start: StartRouter, run: Programs, engine: FakeEngine, flags: dict[str, Any], other: str
) -> None:
    old = start(static(engine), flags={**flags, "drain-delay": 0.3})
    words = {**flags, "static-services": services_file(old)}
    stream = chat_call(stream=True, script={"stream": {"chunks": 60, "interval": 0.05}})

    async def streams() -> list[str]:
        client = LoadClient(old.url)
        outcomes = await client.closed_loop([stream] * 6, 6)
        await client.close()
        return [outcome.kind for outcome in outcomes]

    found: list[str] = []
    running = threading.Thread(target=lambda: found.extend(asyncio.run(streams())))
    running.start()
    wait_until(lambda: old.in_flight() == 6)
    with RawClient(old.url) as kept:
        kept.send(request_bytes("GET", "/health"))
        assert kept.read().get("connection") != "close"
        new = successor(old, run, words, other)
        old.program.wait_for_line("handed over in_flight=6")
        kept.send(request_bytes("GET", "/health"))
        answer = kept.read()
        assert answer.status == 200, "the address is as well as ever"
        assert json.loads(answer.body)["status"] == "healthy"
        assert answer.get("connection") == "close", "its connections move on"
    wait_until(lambda: not has_listener(old.program.pid, flags["router-port"]))
    assert new.in_flight() == 0, "the port is the new one's"
    running.join(30)
    assert found == ["ok"] * 6
    assert old.program.wait(20) == 0
    assert closed_loop(new.url, [chat_call()], 1)[0].kind == "ok"
    print(f"R9 {old.name}: 6 of 6 streams ended well after {other} had taken over the port")


def test_after_a_handover_the_old_one_has_no_part_in_the_port(
    start: StartRouter, run: Programs, engine: FakeEngine, flags: dict[str, Any]
) -> None:
    old = start(static(engine), flags={**flags, "drain-delay": 60})
    assert has_listener(old.program.pid, flags["router-port"])
    successor(old, run, {**flags, "static-services": services_file(old)})
    wait_until(lambda: not has_listener(old.program.pid, flags["router-port"]))
    assert old.program.process.poll() is None, "it drains"


def test_after_a_handover_one_signal_is_not_enough_and_two_are(
    start: StartRouter, run: Programs, engine: FakeEngine, flags: dict[str, Any]
) -> None:
    old = start(static(engine), flags={**flags, "drain-delay": 0})
    call = chat_call(stream=True, script={"stream": {"chunks": 10_000, "interval": 0.05}})
    with RawClient(old.url) as client:
        client.send(request_bytes(call.method, call.target, call.headers, call.body))
        assert client.read_some()
        successor(old, run, {**flags, "static-services": services_file(old)})
        old.program.wait_for_line("handed over in_flight=1")
        old.program.signal(signal.SIGTERM)
        for _ in range(10):
            assert b'"error"' not in client.read_some(), "the stream goes on"
        old.program.signal(signal.SIGTERM)
        assert old.program.wait(10) == 0
        rest = b""
        while more := client.read_some():
            rest += more
        assert b'"code":"draining"' in rest


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_successor_that_ends_before_it_is_ready_changes_nothing(
    start: StartRouter,
    run: Programs,
    engine: FakeEngine,
    flags: dict[str, Any],
    number: signal.Signals,
) -> None:
    old = start(static(engine), flags=flags)
    waiting = waiting_successor(run, old.name, flags)
    waiting.signal(number)
    waiting.wait()
    assert "listening" not in waiting.output
    assert closed_loop(old.url, [chat_call()] * 5, 1)[-1].kind == "ok"
    successor(old, run, {**flags, "static-services": services_file(old)})
    assert old.program.wait(20) == 0


def test_a_port_whose_router_dies_during_the_handover_is_served_by_the_successor(
    start: StartRouter, run: Programs, engine: FakeEngine, fakes: Farm, flags: dict[str, Any]
) -> None:
    old = start(static(engine), flags=flags)
    registry = fakes.registry()
    fakes.call(registry.misbehave(503))
    waiting = waiting_successor(run, old.name, flags, registry.url)
    old.program.kill()
    with RawClient(old.url) as early:
        early.send(HEALTH)
        fakes.call(registry.publish([registration("e0", engine.port)]))
        fakes.call(registry.misbehave())
        assert waiting.wait_listening() == old.url
        assert early.read().status == 200, "who came in between waited in the queue"
    assert "still accepts" not in waiting.output, "the old one is known to be gone"
    assert flags["handover"].is_socket(), "the next one can take over"
    assert waiting.stop() == 0


@pytest.mark.parametrize("alive", [pytest.param(alive, marks=SLOW) for alive in (True, False)])
def test_a_successor_that_never_gets_ready_serves_only_where_nobody_else_does(
    start: StartRouter, run: Programs, engine: FakeEngine, flags: dict[str, Any], alive: bool
) -> None:
    old = start(static(engine), flags=flags)
    waiting = waiting_successor(run, old.name, flags)
    if alive:
        assert waiting.wait(60) == 1
        assert "not ready in 30 s: no registry has answered" in waiting.output
        assert closed_loop(old.url, [chat_call()], 1)[0].kind == "ok"
    else:
        old.program.kill()
        assert waiting.wait_listening(60) == old.url
        assert "not ready, but the router before this one is gone" in waiting.output
        assert ask(old.url, "GET", "/health").status == 200


def test_a_request_that_waits_for_an_engine_is_answered_after_the_handover(
    start: StartRouter, run: Programs, fakes: Farm, flags: dict[str, Any]
) -> None:
    engine = fakes.engine("e0", models=["m"], script={"delay": 2.0})
    old = start(static(engine), flags={**flags, "max-concurrency": 1})
    found: list[str] = []
    calls = [chat_call()] * 2
    running = threading.Thread(
        target=lambda: found.extend(outcome.kind for outcome in closed_loop(old.url, calls, 2))
    )
    running.start()
    wait_until(lambda: old.get("/stats")["queued"] == 1, what="one waits")
    successor(old, run, {**flags, "static-services": services_file(old)})
    assert old.program.wait(20) == 0
    running.join(20)
    assert found == ["ok"] * 2


@pytest.mark.skipif("rust" not in router_names(), reason="only this router has many sockets")
@pytest.mark.parametrize("other", router_names())
def test_any_number_of_sockets_can_be_handed_over(
    run: Programs, flags: dict[str, Any], other: str
) -> None:
    quiet = {**flags, "state-dir": "none"}
    old = Router(run, "rust", {**quiet, "threads": 400})
    with storm(old.url, HEALTH) as blowing:
        blowing.wait(50)
        successor(old, run, flags, other)
        assert old.program.wait(20) == 0
        blowing.wait(400)
        answers = blowing.end()
    assert answers == {"200": answers.total()}


def test_a_successor_knows_the_models_that_engines_only_tell_when_asked(
    start: StartRouter, run: Programs, fakes: Farm, flags: dict[str, Any]
) -> None:
    engine = fakes.engine("e", models=["m"], models_delay=0.5)  # its probe is answered well before
    services = [{"name": "e", "host": "127.0.0.1", "port": engine.port}]
    router = start(services, flags=flags)
    wait_until(lambda: closed_loop(router.url, [chat_call()], 1)[0].kind == "ok")
    new = successor(router, run, {**flags, "static-services": services_file(router)})
    assert ask(new.url, "GET", "/v1/models/m").status == 200
    assert closed_loop(new.url, [chat_call()], 1)[0].kind == "ok"
