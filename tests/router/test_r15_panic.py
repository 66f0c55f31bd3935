"""R15: if everything looks dead we still try."""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import closed_loop, static
from rig.load_client import chat_call, kinds
from rig.processes import wait_until
from rig.routers import SLOW, StartRouter
from rig.traffic import Traffic, faults

FLAGS = {"health-timeout": 0.1, "health-interval": 0.05}


@contextlib.contextmanager
def dropping(fakes: Farm, engines: list[FakeEngine]) -> Iterator[None]:
    """The babysitter ports take connections and never say a word, as behind a broken network."""
    with contextlib.ExitStack() as stack:
        for engine in engines:
            fakes.apply(engine, sidecar=False)
            silent = stack.enter_context(socket.socket())
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            silent.bind(("127.0.0.1", engine.port + 1))
            silent.listen(0)
        yield


@pytest.mark.parametrize("seconds", [1.5, pytest.param(60.0, marks=SLOW)])
def test_engines_whose_probes_all_fail_serve_on_and_dead_ones_are_told_apart_at_once(
    start: StartRouter, fakes: Farm, seconds: float
) -> None:
    engines = [fakes.engine(f"e{number}") for number in range(3)]
    others = [fakes.engine(f"o{number}", models=["other"]) for number in range(4)]
    router = start(static(*engines, *others), flags=FLAGS)
    assert router.get("/stats")["panic"] is False
    with dropping(fakes, engines):
        with Traffic(router.url, 20, lambda _: chat_call()) as traffic:
            router.wait_healthy("4/7")
            assert router.get("/stats")["panic"] is True
            before = [len(fakes.records(engine)) for engine in engines]
            time.sleep(seconds)
            outcomes = traffic.end()
        assert router.get("/health")["healthy_services"] == "4/7"
        assert faults(outcomes) == []
        hits = [len(fakes.records(e)) - was for e, was in zip(engines, before, strict=True)]
        assert max(hits) - min(hits) <= 2, "they take turns as ever"
        other = closed_loop(router.url, [chat_call("other")], 1)[0]
        assert other.head
        assert "panic" not in (other.head.get("x-infinilm-policy") or "panic")
        for engine in engines:
            fakes.apply(engine, listening=False)
        refused = closed_loop(router.url, [chat_call()] * 20, 1)
    slowest = max(outcome.ended for outcome in refused)
    print(
        f"R15 {router.name}: {len(faults(outcomes))} of {len(outcomes)} calls failed in panic;"
        f" with the engines gone the slowest 503 took {slowest * 1e3:.0f} ms"
    )
    assert {(o.status, o.head and o.head.get("x-infinilm-error")) for o in refused} == {
        (503, "no_healthy_engine")
    }
    assert all(o.head and o.head.get("retry-after") for o in refused)
    assert kinds(refused) == {"explained": 20}
    assert slowest <= 1.0
    for engine in engines:
        fakes.apply(engine, listening=True, sidecar=True)
    router.wait_healthy("7/7")
    assert router.get("/stats")["panic"] is False
    wait_until(lambda: kinds(closed_loop(router.url, [chat_call()] * 4, 1)) == {"ok": 4})
