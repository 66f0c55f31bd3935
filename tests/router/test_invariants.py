"""After any mix of success, error, retry, leaving, engine death, health flip and table change:
every counter is zero, and every request had exactly one outcome."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from rig.engine_script import Json
from rig.fake_engine import FakeEngine
from rig.fake_registry import FakeRegistry, registration
from rig.farm import Farm
from rig.load_client import chat_call
from rig.processes import wait_until
from rig.raw_client import RawClient, request_bytes
from rig.routers import SLOW, Router, StartRouter

ENGINES = 3
LIMIT = 2  # requests that each engine takes at once, so that some wait in the router
# Everything that an engine can do to a request, and all that ends by itself.
ENDING: dict[str, Json] = {
    "ok": {},
    "stream": {"stream": {"chunks": 3}},
    "client fault": {"status": 400},
    "busy": {"status": 429, "headers": {"Retry-After": "1"}},
    "broken": {"status": 503},
    "no answer": {"die": {"at": "head", "how": "rst"}},
    "closed": {"die": {"at": "head", "how": "fin"}},
    "cut": {"stream": {"chunks": 4}, "die": {"at": 2, "how": "rst"}},
    "ended early": {"stream": {"chunks": 4}, "die": {"at": 2, "how": "clean"}},
    "no HTTP": {"raw": "nonsense\r\n\r\n"},
    "late": {"delay": 60},
}
LASTING: dict[str, Json] = {
    "silent": {"delay": 60},
    "streaming": {"stream": {"chunks": 3000, "interval": 0.02}},  # a minute too
}
FLAGS = {
    "response-timeout": 0.3,  # "late" ends by it; "silent" is asked for as a stream, which may wait
    "first-byte-timeout": 60,
    "max-errors": 3,
    "access-log": "all",
    "retry-on": "reset-before-headers",
}
COUNTERS = ("in_flight", "queued", "prefill_requests", "prefill_bytes")


@dataclass
class World:
    """A router that lives as long as the test, its engines and its registry."""

    router: Router
    fakes: Farm
    registry: FakeRegistry
    engines: list[FakeEngine]
    sent: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def publish(self, numbers: set[int]) -> None:
        """Make the registry list these engines."""
        engines = [self.engines[number] for number in sorted(numbers)]
        listed = [registration(e.name, e.port, max_concurrency=LIMIT) for e in engines]
        self.fakes.call(self.registry.publish(listed))

    def begin(self, kind: str, script: Json, *, stream: bool, patience: float = 15) -> RawClient:
        """Send a request with an id of its own on a connection of its own."""
        self.sent += 1
        self.kinds[kind] += 1
        call = chat_call(script=script, stream=stream)
        headers = (*call.headers, ("X-Request-Id", f"inv-{self.sent}"))
        client = RawClient(self.router.url, patience)
        client.send(request_bytes("POST", call.target, headers, call.body))
        return client

    def counted(self) -> dict[str, Any]:
        """What the router still counts, of everything that must return to zero."""
        stats = self.router.get("/stats")
        everywhere = {"router": stats, **{s["name"]: s for s in stats["services"]}}
        return {
            f"{place} {name}": counters[name]
            for place, counters in everywhere.items()
            for name in COUNTERS
            if counters.get(name)
        }

    def outcomes(self) -> Counter[str]:
        """How often the log tells the end of each request."""
        return Counter(re.findall(r" request id=(inv-\d+) ", self.router.program.output))

    def settle(self) -> None:
        """Everything is well and at rest again."""
        for engine in self.engines:
            self.fakes.apply(engine, listening=True, health=200)
        self.publish(set(range(ENGINES)))
        wait_until(lambda: self.counted() == {}, 10, f"zero; last: {self.counted()}")
        wait_until(lambda: all(engine.in_flight == 0 for engine in self.engines), 10)
        self.router.wait_healthy(f"{ENGINES}/{ENGINES}")


class Storm(RuleBasedStateMachine):
    """One mix of requests and events."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.open: list[RawClient] = []

    @rule(kind=st.sampled_from(sorted(ENDING)))
    def a_request_comes_to_its_end(self, kind: str) -> None:
        script = ENDING[kind]
        # Behind lasting requests it may have to wait: then it leaves.
        patience = 0.5 if self.open else 15
        with self.world.begin(kind, script, stream="stream" in script, patience=patience) as client:
            try:
                answer = client.read_any("POST")
            except TimeoutError:
                assert self.open, "nothing stands in its way"
            else:
                assert 200 <= answer.status < 600

    @rule(kind=st.sampled_from(sorted(LASTING)), stay=st.integers(1, 5))
    def requests_stay(self, kind: str, stay: int) -> None:
        for _ in range(stay):
            self.open.append(self.world.begin(kind, LASTING[kind], stream=True))

    @rule(data=st.data(), reset=st.booleans())
    def a_client_leaves(self, data: st.DataObject, reset: bool) -> None:
        if self.open:
            client = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
            if reset:
                client.reset()
            else:
                client.__exit__()

    @rule(number=st.integers(0, ENGINES - 1), listening=st.booleans())
    def an_engine_dies_or_returns(self, number: int, listening: bool) -> None:
        self.world.fakes.apply(self.world.engines[number], listening=listening)

    @rule(number=st.integers(0, ENGINES - 1), health=st.sampled_from((200, 503)))
    def health_flips(self, number: int, health: int) -> None:
        self.world.fakes.apply(self.world.engines[number], health=health)

    @rule(numbers=st.sets(st.integers(0, ENGINES - 1), min_size=1))
    def the_table_changes(self, numbers: set[int]) -> None:
        self.world.publish(numbers)

    @invariant()
    def only_requests_that_stay_are_counted(self) -> None:
        def counted() -> bool:
            stats = self.world.router.get("/stats")
            limits = [s for s in stats["services"] if "max_concurrency" in s]
            assert all(s["in_flight"] <= s["max_concurrency"] for s in limits)
            return bool(stats["in_flight"] + stats.get("queued", 0) <= len(self.open))

        wait_until(counted, 10, f"at most {len(self.open)} requests in the router")

    def teardown(self) -> None:
        for client in self.open:
            client.__exit__()
        self.world.settle()


@pytest.mark.parametrize("examples", [8, pytest.param(300, marks=SLOW)], ids=["", "many"])
def test_whatever_happens_counters_return_to_zero_and_requests_end_once(
    start: StartRouter, fakes: Farm, examples: int
) -> None:
    registry = fakes.registry()
    engines = [fakes.engine(f"e{number}", models=["m"]) for number in range(ENGINES)]
    fakes.call(registry.publish([registration(e.name, e.port) for e in engines]))
    flags = {**FLAGS, "registry-url": registry.url, "service-removal-grace-period": 0}
    router = start(flags=flags, healthy=f"{ENGINES}/{ENGINES}")
    world = World(router, fakes, registry, engines)
    world.settle()
    run_state_machine_as_test(
        lambda: Storm(world),
        settings=settings(
            max_examples=examples,
            stateful_step_count=12,
            phases=(Phase.generate,),  # the router remembers: a shorter mix would be another story
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    begun = {f"inv-{number}" for number in range(1, world.sent + 1)}
    assert router.program.stop() == 0, "it drains, since nothing is left"
    outcomes = world.outcomes()
    assert outcomes.keys() == begun, "every request has an outcome"
    assert set(outcomes.values()) == {1}, "and only one"
    assert world.kinds.keys() >= {"ok", "cut", "silent", "streaming"}, "the mix was one"
    assert "Traceback" not in router.program.output
