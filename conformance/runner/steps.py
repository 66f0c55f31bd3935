"""Do the steps of a case, one after the other; the first that differs ends the case."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from rig.engine_answer import Record
from rig.fake_engine import FakeEngine
from rig.processes import ROOT, wait_until
from rig.raw_client import RawClient
from rig.routers import flag_list, router_argv
from runner.cases import Case, Json
from runner.exchange import Answer, answer_differences, body_of, read_answer, wire_of
from runner.match import differences, header_differences, order_differences
from runner.transcript import Transcript
from runner.world import Finished, World

PATIENCE = 10.0
COUNTS = ("hits", "generations", "in_flight", "max_in_flight", "cancelled", "connections", "open")


class CaseFailedError(AssertionError):
    """A step did not go as the case says."""


def run_case(world: World, case: Case) -> Transcript:
    """Do every step; CaseFailedError names the step and every difference."""
    world.answers = []
    for number, step in enumerate(case.steps, 1):
        verb = next(key for key in step if key in VERBS)
        found = VERBS[verb](world, world.fill(step))
        if found:
            listed = "\n  ".join(found)
            log = "\n".join(world.router.program.lines[-15:])
            raise CaseFailedError(f"step {number} ({verb}):\n  {listed}\nrouter's log:\n{log}")
    # What is asked until the router knows better may reach an engine before it does.
    return world.transcript(received=not any(step.get("until") for step in case.steps))


def _request(world: World, step: Json) -> list[str]:
    """One request, or `times` of them, or again `until` it is as expected."""
    deadline = time.monotonic() + PATIENCE
    before = len(world.answers)
    while True:
        del world.answers[before:]
        found = _requests(world, step)
        if not found or not step.get("until") or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


WAYS = ("whole", "byte by byte", "behind another request")


def _requests(world: World, step: Json) -> list[str]:
    found: list[str] = []
    served = []
    ways = WAYS if step.get("every_way") else WAYS[:1]
    for way in ways * step.get("times", 1):
        with RawClient(world.router.url) as client:
            answer = _send(client, step["request"], way)
            world.answers.append(answer)
            differs = answer_differences(step.get("expect", {}), answer)
            if "end" in step:
                differs += _end(client, step["end"])
        found += [f"({way}) {text}" for text in differs]
        served.append(answer.response and answer.response.get("x-infinilm-service"))
    if "served" in step:
        found += differences(step["served"], served, "served by")
    if "shares" in step:
        shares = {name: served.count(name) for name in step["shares"]}
        found += differences(step["shares"], shares, "shares")
    return found


def _end(client: RawClient, expected: str) -> list[str]:
    """`open` means that the connection serves another request."""
    if expected != "open":
        return differences(expected, client.read_end(5), "end of the connection")
    health = {"target": "/health"}
    client.send(wire_of(health))
    found = answer_differences({"status": 200}, read_answer(client, health))
    return [f"the connection is not usable: {text}" for text in found]


def _send(client: RawClient, request: Json, way: str) -> Answer:
    wire = wire_of(request)
    if way == "behind another request":
        client.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" + wire)
        client.read()
    else:
        client.send(wire, bytewise=way == "byte by byte")
    return read_answer(client, request)


def _connection(world: World, step: Json) -> list[str]:
    """Several requests on one connection: all sent first (pipelined), or one by one."""
    requests, found = step["connection"], []
    with RawClient(world.router.url) as client:
        if step.get("pipelined"):
            data = b"".join(wire_of(request) for request in requests)
            client.send(data, bytewise=step.get("bytewise", False))
        for request, expect in zip(requests, step["expect_each"], strict=True):
            if not step.get("pipelined"):
                client.send(wire_of(request))
            world.answers.append(read_answer(client, request))
            found += answer_differences(expect, world.answers[-1])
        if "end" in step:
            found += _end(client, step["end"])
    return found


def _expectation(world: World, step: Json) -> list[str]:
    """`Expect: 100-continue`: the interim answer comes before the body is sent."""
    wire = wire_of(step["continue"])
    head, _, body = wire.partition(b"\r\n\r\n")
    with RawClient(world.router.url) as client:
        client.send(head + b"\r\n\r\n")
        interim = client.read_any("POST")
        client.send(body)
        answer = read_answer(client, step["continue"])
        world.answers.append(answer)
    found = differences(step.get("interim", 100), interim.status, "interim answer")
    return found + answer_differences(step["expect"], answer)


def _leave(world: World, step: Json) -> list[str]:
    """A client that goes away: as soon as it has sent, in a queue, at an engine, in a stream."""
    with RawClient(world.router.url) as client:
        client.send(wire_of(step["leave"]))
        if step["when"] == "streaming":
            client.read_some()
        elif step["when"] == "queued":
            wait_until(lambda: world.router.get("/stats")["queued"], PATIENCE)
        elif step["when"] == "waiting":
            wait_until(lambda: any(e.in_flight for e in world.engines.values()), PATIENCE)
        if step.get("how") == "reset":
            client.reset()
        elif step.get("how") == "half-close":
            client.half_close()
            client.read_end(5)
    return []


def _start(world: World, step: Json) -> list[str]:
    """A request that runs beside the next steps; `finish` waits for it."""

    def exchange() -> Finished:
        with RawClient(world.router.url) as client:
            client.send(wire_of(step["start"]))
            sent.set()
            answer = read_answer(client, step["start"])
        return answer, answer_differences(step["expect"], answer)

    sent = threading.Event()
    done: Future[Finished] = Future()
    threading.Thread(target=lambda: done.set_result(exchange()), daemon=True).start()
    world.pending.append(done)
    return [] if sent.wait(PATIENCE) else ["could not be sent"]


def _finish(world: World, _: Json) -> list[str]:
    finished = [done.result(PATIENCE * 2) for done in world.pending]
    world.pending.clear()
    world.answers += [answer for answer, _ in finished]
    return [text for _, found in finished for text in found]


def _engines(world: World, step: Json) -> list[str]:
    """What the engines have seen; waits until it is so."""
    found: list[str] = []

    def settled() -> bool:
        found.clear()
        for name, expect in step["engines"].items():
            found.extend(f"engine {name}: {text}" for text in _engine(world, name, expect))
        return not found

    try:
        wait_until(settled, PATIENCE)
    except AssertionError:
        return found
    return []


def _engine(world: World, name: str, expect: Json) -> list[str]:
    engine = world.engines[name]
    records = world.farm.records(engine)
    found = differences(0, len(engine.server.errors), f"wire errors {engine.server.errors}")
    for key in COUNTS:
        if key in expect:
            found += differences(expect[key], _count(engine, records, key), key)
    if "received" in expect:
        if not records:
            return [*found, "nothing was received"]
        found += _received(expect["received"], records[-1])
    return found


def _count(engine: FakeEngine, records: list[Record], key: str) -> int:
    if key == "hits":
        return len(records)
    if key == "generations":
        return sum(record.generation for record in records)
    if key == "cancelled":
        return sum(record.outcome == "cancelled" for record in records)
    if key == "connections":
        return len({record.request.connection for record in records})
    if key == "open":
        return engine.server.open
    return int(getattr(engine, key))


def _received(expect: Json, record: Record) -> list[str]:
    request = record.request
    found = []
    for key in ("method", "target"):
        if key in expect:
            found += differences(expect[key], getattr(request, key), key)
    found += header_differences(expect.get("headers", {}), request.head.headers)
    if "order" in expect:
        found += order_differences(expect["order"], request.head.headers)
    if {"body", "json", "size", "base64"} & set(expect) and request.body != body_of(expect):
        found.append(f"body {request.body[:200]!r} ({len(request.body)} bytes) is another")
    return found


def _change(world: World, step: Json) -> list[str]:
    for name, settings in step["change"].items():
        world.farm.apply(world.engines[name], **settings)
    return []


def _publish(world: World, step: Json) -> list[str]:
    world.publish(step["publish"])
    return []


def _registry(world: World, step: Json) -> list[str]:
    """`down`, `up`, or a scripted misbehaviour of the registry."""
    assert world.registry
    how = step["registry"]
    if isinstance(how, dict):
        raw = how.get("raw")
        data = None if raw is None else raw.encode("latin-1")
        world.registry.watch = how.get("watch", True)
        world.farm.call(world.registry.misbehave(how.get("status", 200), data))
    else:
        world.farm.call({"down": world.registry.down, "up": world.registry.up}[how]())
    return []


def _healthy(world: World, step: Json) -> list[str]:
    world.router.wait_healthy(step["healthy"])
    return []


def _pause(_: World, step: Json) -> list[str]:
    """Let time pass, for what must *not* happen within it."""
    time.sleep(step["pause"])
    return []


def _signal(world: World, step: Json) -> list[str]:
    world.router.program.signal(getattr(signal, f"SIG{step['signal']}"))
    return []


def _exit(world: World, step: Json) -> list[str]:
    return differences(step["exit"], world.router.program.wait(PATIENCE), "exit code")


VERBS: dict[str, Callable[[World, Json], list[str]]] = {
    "request": _request,
    "connection": _connection,
    "continue": _expectation,
    "leave": _leave,
    "start": _start,
    "finish": _finish,
    "engines": _engines,
    "change": _change,
    "publish": _publish,
    "registry": _registry,
    "healthy": _healthy,
    "pause": _pause,
    "signal": _signal,
    "exit": _exit,
}


def run_cli_case(router: str, case: Case, folder: Any) -> None:
    """Cases without running programs: the router's command line, its exit code and output."""
    for step in case.steps:
        found = _command(router, step["command"], folder)
        if found:
            raise CaseFailedError("\n  ".join(found))


def _command(router: str, command: Json, folder: Any) -> list[str]:
    flags = dict(command.get("flags", {}))
    for flag, content in command.get("files", {}).items():
        path = folder / f"{flag}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        flags[flag] = path
    done = subprocess.run(
        [*router_argv(router), *flag_list(flags), *command.get("arguments", [])],
        env={"PATH": "/usr/bin:/bin", **command.get("env", {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    output = done.stdout + done.stderr
    found = differences(command["exit"], done.returncode, "exit code")
    for pattern in command.get("output", []):
        found += differences({"$matches": pattern}, output, "output")
    if "json" in command and not found:
        found += differences(command["json"], json.loads(done.stdout), "configuration")
    return found
