"""An engine that its babysitter calls stalled gets no requests, and is not forgotten."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from rig.load_client import LoadClient, Outcome, chat_call
from rig.processes import wait_until
from rig.routers import StartRouter
from rig.system import System, running_system
from rig.traffic import faults, served_by

QUICK = {"stalled_after": 1, "models_interval": 0.2, "probe_timeout": 0.5}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system"), **QUICK) as made:
        yield made


def ask(url: str, count: int) -> list[Outcome]:
    async def all_of_them() -> list[Outcome]:
        client = LoadClient(url)
        calls = [chat_call(max_tokens=2) for _ in range(count)]
        outcomes = await client.closed_loop(calls, 2)
        await client.close()
        return outcomes

    return asyncio.run(all_of_them())


def test_a_stalled_engine_is_avoided_and_comes_back_by_itself(
    start: StartRouter, system: System
) -> None:
    registry, sitters = system.registry, system.sitters
    router = start(flags={"registry-url": registry.url}, healthy="2/2")
    east, west = (sitter.engine_name for sitter in sitters)
    wait_until(lambda: sitters[1].engine()["metrics"] == "vllm", 30, "metrics are read")
    engine = sitters[1].engine()["pid"]
    began = time.monotonic()
    os.kill(engine, signal.SIGSTOP)
    wait_until(lambda: router.service(west)["status"] == "stalled", 30, "known as stalled")
    seen = time.monotonic()
    assert router.service(west)["healthy"] is False
    assert registry.entry(west)["status"] == "stalled"
    outcomes = ask(router.url, 20)
    assert faults(outcomes) == []
    assert {served_by(outcome) for outcome in outcomes} == {east}
    assert router.service(west)["metadata"]["models"] == ["m"]

    os.kill(engine, signal.SIGCONT)
    wait_until(lambda: router.service(west)["healthy"], 30, "healthy again")
    outcomes = ask(router.url, 20)
    assert faults(outcomes) == []
    assert {served_by(outcome) for outcome in outcomes} == {east, west}
    print(f"stall {router.name}: known {seen - began:.1f} s after it began (limit 1 s)")
