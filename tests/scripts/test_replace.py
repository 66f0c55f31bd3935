"""`launch_router.sh --replace`: another router on the same port, and no request is lost."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rig.fake_engine import FakeEngine
from rig.farm import farm
from rig.flows import static
from rig.load_client import LoadClient, Outcome, chat_call
from rig.processes import free_port, wait_until
from rig.raw_client import ask
from rig.routers import SLOW, router_names
from rig.traffic import Traffic, faults

STREAM = {"stream": {"chunks": 80, "interval": 0.05}}
LONG_STREAM = {"stream": {"chunks": 160, "interval": 0.05}}


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with farm() as fakes:
        yield fakes.engine("e0", models=["m"])


class Place:
    """A tree whose router serves this engine on a port of its own."""

    def __init__(self, tree: Any, engine: FakeEngine) -> None:
        self.tree = tree
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.configure(static(engine))

    def configure(self, services: list[dict[str, Any]], **router: Any) -> None:
        section = {"host": "127.0.0.1", "port": self.port, "drain_delay": 1, **router}
        content = {"router": section, "static_services": {"services": services}}
        self.config = self.tree.write("router.json", json.dumps(content))

    def launch(self, name: str, *words: str, **env: str) -> tuple[int, str]:
        code, output = self.tree.script(
            "launch_router.sh",
            *("--implementation", name, *words),
            ROUTER_CONFIG=str(self.config),
            **env,
        )
        return int(code), str(output)

    def begin_to_replace(self, name: str) -> Any:
        """The script, at the moment when the port has changed hands."""
        script = self.tree.popen(
            self.tree.root / "launch_router.sh",
            *("--replace", "--implementation", name),
            ROUTER_CONFIG=str(self.config),
        )
        settled = ["router.pid", "router_old.pid"]
        wait_until(lambda: self.tree.pid_files() == settled, 30, "the port has changed hands")
        return script

    def started_at(self) -> str:
        return str(json.loads(ask(self.url, "GET", "/stats").body)["started_at"])


def call() -> Any:
    made = chat_call()
    return type(made)(made.target, made.body, (*made.headers, ("Connection", "close")))


async def streams(url: str, count: int, script: Any) -> list[Outcome]:
    client = LoadClient(url, 120)
    call = chat_call(stream=True, script=script)
    outcomes = await client.closed_loop([call] * count, count)
    await client.close()
    return outcomes


class Streams:
    """So many streams at once, from a thread of their own."""

    def __init__(self, url: str, count: int, script: Any = STREAM) -> None:
        self.done: list[Outcome] = []
        self._thread = threading.Thread(
            target=lambda: self.done.extend(asyncio.run(streams(url, count, script)))
        )
        self._thread.start()

    def end(self) -> list[Outcome]:
        self._thread.join(120)
        return self.done


@pytest.mark.parametrize(("rounds", "count"), [(1, 10), pytest.param(5, 30, marks=SLOW)])
def test_switching_routers_there_and_back_under_load_loses_nothing(
    tree: Any, engine: FakeEngine, rounds: int, count: int
) -> None:
    place = Place(tree, engine)
    names = router_names()[::-1] * 2
    order = [names[number % len(names)] for number in range(2 * rounds)]
    code, output = place.launch(router_names()[0])
    assert code == 0, output
    running: list[Outcome] = []
    with (
        Traffic(place.url, 20, lambda _: call()) as new_connections,
        Traffic(place.url, 20, lambda _: chat_call()) as kept_connections,
    ):
        for name in order:
            before, pid = place.started_at(), tree.pid("router")
            held = Streams(place.url, count)
            wait_until(lambda: engine.in_flight >= count)
            code, output = place.launch(name, "--replace")
            assert code == 0, output
            assert f"router: using {name}" in output
            assert output.endswith("router: replaced\n")
            assert place.started_at() != before
            assert tree.pid("router") != pid
            assert tree.pid_files() == ["router.pid"]
            running += held.end()
        short = new_connections.end() + kept_connections.end()
    assert faults(running) == []
    assert faults(short) == []
    print(
        f"R9 scripts: {len(order)} times --replace ({', '.join(order)}), {len(short)} short calls"
        f" and {len(running)} streams meanwhile, 0 lost"
    )
    assert tree.script("stop_router.sh")[0] == 0
    assert tree.pid_files() == []


def test_a_successor_that_fails_leaves_the_old_one_serving_and_says_why(
    tree: Any, engine: FakeEngine
) -> None:
    place = Place(tree, engine)
    assert place.launch(router_names()[0])[0] == 0
    before, pid = place.started_at(), tree.pid("router")
    place.configure([], prot=1)
    code, output = place.launch(router_names()[0], "--replace")
    assert code == 64
    assert "prot" in output
    assert f"router: not replaced; pid {pid} serves as before" in output
    place.configure(static(engine), port=free_port())
    code, output = place.launch(router_names()[0], "--replace")
    assert code == 1
    assert "stop it first" in output
    assert "serves as before" in output
    assert (tree.pid("router"), tree.pid_files()) == (pid, ["router.pid"])
    assert place.started_at() == before


@pytest.mark.parametrize("old", router_names())
def test_a_router_that_can_not_give_its_port_away_serves_on(
    tree: Any, engine: FakeEngine, old: str
) -> None:
    place = Place(tree, engine)
    assert place.launch(old, ROUTER_HANDOVER="none")[0] == 0
    pid = tree.pid("router")
    code, output = place.launch(router_names()[-1], "--replace")
    assert code == 1
    assert f"no router gives its port at {tree.logs}/router.handover" in output
    assert "stop it first, and start this one without --take-over" in output
    assert f"router: not replaced; pid {pid} serves as before" in output
    assert (tree.pid("router"), tree.pid_files()) == (pid, ["router.pid"])
    assert ask(place.url, "GET", "/health").status == 200


def test_while_the_old_one_ends_its_streams_all_scripts_know_of_both(
    tree: Any, engine: FakeEngine
) -> None:
    place = Place(tree, engine)
    name = router_names()[0]
    assert place.launch(name)[0] == 0
    held = Streams(place.url, 1, LONG_STREAM)
    wait_until(lambda: engine.in_flight == 1)
    script = place.begin_to_replace(name)
    new, old = tree.pid("router"), tree.pid("router_old")
    code, output = tree.script("deploy_services.sh", "status")
    assert code == 0, output
    assert f"ready at {place.url} (pid {new})" in output
    assert f"part of a replacement under way (pid {old})" in output
    code, output = place.launch(name, "--replace")
    assert code == 1
    assert f"pid {old} (router_old) is not done with the last replacement yet" in output
    code, output = tree.script("stop_all.sh")
    assert code == 0, output
    assert faults(held.end()) == [], "even then a stream may end by itself"
    assert script.wait(20) == 0
    assert tree.pid_files() == []


def test_a_replaced_router_that_has_ended_ends_no_container(tree: Any, engine: FakeEngine) -> None:
    place = Place(tree, engine)
    assert place.launch(router_names()[0])[0] == 0
    for name in ("router_old", "router_next"):
        tree.write(f"logs/{name}.pid", "4194305\n")  # no process can have it
    assert tree.library("all_run")[0] == 0
    tree.write("logs/registry.pid", "4194305\n")
    code, output = tree.library("all_run")
    assert code == 1
    assert "registry: ended" in output


def test_a_successor_that_hangs_is_stopped_and_the_old_one_serves_on(
    tree: Any, engine: FakeEngine
) -> None:
    place = Place(tree, engine)
    assert place.launch(router_names()[0])[0] == 0
    pid = tree.pid("router")
    place.configure([], registry_url=f"http://127.0.0.1:{free_port()}", state_dir="none")
    code, output = place.launch(router_names()[-1], "--replace", ROUTER_WAIT_TIMEOUT="2")
    assert code == 1
    assert "router_next: not ready after 2 s" in output
    assert f"router: not replaced; pid {pid} serves as before" in output
    assert (tree.pid("router"), tree.pid_files()) == (pid, ["router.pid"])
    assert ask(place.url, "GET", "/v1/models").status == 200


def test_without_a_router_there_is_nothing_to_replace_and_one_is_started(
    tree: Any, engine: FakeEngine
) -> None:
    place = Place(tree, engine)
    code, output = place.launch(router_names()[0], "--replace")
    assert code == 0, output
    assert "router: ready at" in output
    assert tree.pid_files() == ["router.pid"]


def test_a_replacement_that_was_interrupted_is_settled_by_the_next_launch(
    tree: Any, engine: FakeEngine
) -> None:
    """The script was killed when the new router had the port and the old one's name."""
    place = Place(tree, engine)
    name = router_names()[0]
    assert place.launch(name)[0] == 0
    old = tree.pid("router")
    held = Streams(place.url, 1, LONG_STREAM)
    wait_until(lambda: engine.in_flight == 1)
    place.begin_to_replace(name).kill()
    (tree.logs / "router.pid").rename(tree.logs / "router_next.pid")
    (tree.logs / "router_old.pid").rename(tree.logs / "router.pid")
    new = tree.pid("router_next")
    code, output = place.launch(name)
    assert code == 0, output
    assert f"already running (pid {new}" in output
    assert (tree.pid("router"), tree.pid("router_old")) == (new, old)
    assert faults(held.end()) == []
    assert tree.script("stop_router.sh")[0] == 0
    assert tree.pid_files() == []


def test_launch_all_takes_replace_for_the_router(tree: Any, engine: FakeEngine) -> None:
    place = Place(tree, engine)
    alone = {
        "LAUNCH_REGISTRY": "false",
        "LAUNCH_BABYSITTER": "false",
        "ROUTER_CONFIG": str(place.config),
    }
    words = ("--implementation", router_names()[0])
    assert tree.script("launch_all.sh", *words, **alone)[0] == 0
    pid = tree.pid("router")
    code, output = tree.script("launch_all.sh", "--replace", *words, **alone)
    assert code == 0, output
    assert tree.pid("router") != pid


def test_a_launch_that_finds_a_router_in_the_end_leaves_it_as_it_is(
    tree: Any, engine: FakeEngine
) -> None:
    """Another launch was faster, while this one looked for its program."""
    place = Place(tree, engine)
    other = f"'{tree.root}/launch_router.sh' --implementation python >/dev/null 2>&1"
    slow = tree.program(
        "slow router", f"#!/bin/sh\nexec 2>/dev/null; INFINILM_ROUTER_BIN= {other}\n"
    )
    code, output = place.launch("rust", INFINILM_ROUTER_BIN=str(slow))
    assert "router: already running" in output
    assert "replaced" not in output
    assert code == 0, output
    assert tree.pid_files() == ["router.pid"]
