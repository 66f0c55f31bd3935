"""R15: if everything looks dead we still try."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from rig import accounts
from rig.engine_process import EngineProcess
from rig.flows import closed_loop
from rig.load_client import chat_call, kinds
from rig.namespaces import Host, network
from rig.processes import Programs, wait_until
from rig.routers import SLOW, Router, StartRouter
from rig.traffic import Traffic, faults

FLAGS = {"health-timeout": 0.3, "health-interval": 0.05}


@pytest.fixture
def machine() -> Iterator[Host]:
    """The test's own machine: what it starts is on it, and its packets can be dropped."""
    with network("machine") as net, net["machine"].inside():
        yield net["machine"]


@dataclass
class Scene:
    """Three engines whose babysitters' ports can fall silent, four of another model."""

    machine: Host
    engines: list[EngineProcess]
    router: Router

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Every packet to the babysitters is lost; the engines' own ports are fine."""
        for engine in self.engines:
            self.machine.drop(engine.port + 1)
        try:
            yield
        finally:
            self.machine.clear()

    def asked(self) -> list[int]:
        """Requests that each engine got so far."""
        return [self.router.service(engine.name)["request_count"] for engine in self.engines]


def engines_of(run: Programs, names: Sequence[str], model: str) -> list[EngineProcess]:
    made = [EngineProcess(run, name, [model]) for name in names]
    return [engine.wait() for engine in made]


@pytest.fixture
def scene(machine: Host, run: Programs, start: StartRouter) -> Scene:
    engines = engines_of(run, ["e0", "e1", "e2"], "m")
    others = engines_of(run, ["o0", "o1", "o2", "o3"], "other")
    services = [
        e.static(metadata={"models": [model]})
        for model, group in (("m", engines), ("other", others))
        for e in group
    ]
    router = start(services, flags=FLAGS)
    wait_until(lambda: all(s["last_check"] for s in router.get("/stats")["services"]))
    assert router.get("/stats")["panic"] is False
    return Scene(machine, engines, router)


def refused_at_once(router: Router) -> float:
    """Calls while the engines are really gone: 503 that say so; seconds that the slowest took."""
    refused = closed_loop(router.url, [chat_call()] * 20, 1)
    assert {(o.status, o.head and o.head.get("x-infinilm-error")) for o in refused} == {
        (503, "no_healthy_engine")
    }
    assert all(o.head and o.head.get("retry-after") for o in refused)
    assert kinds(refused) == {"explained": 20}
    return max(outcome.ended for outcome in refused)


@pytest.mark.parametrize("seconds", [1.5, pytest.param(60.0, marks=SLOW)])
def test_engines_whose_probes_all_fail_serve_on_and_dead_ones_are_told_apart_at_once(
    scene: Scene, run: Programs, seconds: float
) -> None:
    router = scene.router
    with scene.silence():
        router.wait_healthy("4/7")
        assert router.get("/stats")["panic"] is True
        before = scene.asked()
        with Traffic(router.url, 20, lambda _: chat_call()) as traffic:
            traffic.go_on(seconds)
            assert router.get("/stats")["panic"] is True
            outcomes = traffic.end()
        assert router.get("/health")["healthy_services"] == "4/7"
        assert faults(outcomes) == []
        hits = [now - was for now, was in zip(scene.asked(), before, strict=True)]
        assert max(hits) - min(hits) <= 2, "they take turns as ever"
        other = closed_loop(router.url, [chat_call("other")], 1)[0]
        assert other.head
        assert "panic" not in (other.head.get("x-infinilm-policy") or "panic")
        for engine in scene.engines:
            engine.program.kill()
        slowest = refused_at_once(router)
    print(
        f"R15 {router.name}: {len(faults(outcomes))} of {len(outcomes)} calls failed in panic;"
        f" with the engines gone the slowest 503 took {slowest * 1e3:.0f} ms"
    )
    assert slowest <= 1.0
    for engine in scene.engines:
        EngineProcess(run, engine.name, ["m"], engine.port).wait()
    router.wait_healthy("7/7")
    assert router.get("/stats")["panic"] is False
    wait_until(lambda: kinds(closed_loop(router.url, [chat_call()] * 4, 1)) == {"ok": 4})


def test_engines_that_give_answers_are_not_even_taken_out(scene: Scene) -> None:
    router = scene.router
    stream = {"stream": {"chunks": 150, "interval": 0.02}}
    with Traffic(router.url, 20, lambda _: chat_call(stream=True, script=stream)) as traffic:
        wait_until(lambda: min(scene.asked()) >= 3, what="streams on every engine")
        with scene.silence():
            busy = {engine.name: busy_probes(router, engine.name) for engine in scene.engines}
            wait_until(
                lambda: all(busy_probes(router, n) >= was + 5 for n, was in busy.items()), 15
            )
            assert router.get("/health")["healthy_services"] == "7/7"
            assert router.get("/stats")["panic"] is False
        outcomes = traffic.end()
    assert faults(outcomes) == []
    print(f"R15 {router.name}: probes late and {len(outcomes)} streams running: nobody taken out")


def busy_probes(router: Router, engine: str) -> int:
    found = accounts.metrics(router)
    return accounts.total(found, "engine_probes_total", engine=engine, result="busy")
