"""What an instance says after another one took over its name is a 409 and changes nothing."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Body = Callable[..., dict[str, Any]]
names = (f"contested-{number}" for number in itertools.count())

ACTIONS = ("register", "heartbeat", "update", "remove")
CLAIMS = ("nothing", "instance", "first generation", "last generation")
steps = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(ACTIONS), st.sampled_from(CLAIMS)),
    min_size=5,
    max_size=25,
)


@dataclass
class Contest:
    """Two instances and one name: what the registry must hold after each of their calls."""

    registry: Any
    make: Body
    name: str = field(default_factory=lambda: next(names))
    owner: tuple[str, int] | None = None
    weight: int = 0
    given: dict[str, list[int]] = field(default_factory=lambda: {"a": [], "b": []})

    def play(self, instance: str, action: str, claim: str) -> None:
        if action == "register":
            self.register(instance)
        else:
            claims = self.claims(instance, claim)
            before = self.shown()
            answer = self.send(action, claims)
            self.check(action, claims, answer)
            if answer.status_code != 200:
                assert self.shown() == before, "a refused call changes nothing"
        shown = self.shown()
        assert (shown and (shown["instance_id"], shown["generation"])) == self.owner
        assert shown is None or shown["weight"] == self.weight

    def register(self, instance: str) -> None:
        self.weight += 1
        answer = self.registry.register(
            self.make(self.name, instance_id=instance, weight=self.weight)
        )
        generation = answer.json()["generation"]
        assert answer.status_code == 201
        assert generation not in itertools.chain(*self.given.values()), "no other life had it"
        assert self.owner is None or generation == self.owner[1] + 1
        self.owner = (instance, generation)
        self.given[instance].append(generation)

    def claims(self, instance: str, claim: str) -> dict[str, Any]:
        if claim == "instance":
            return {"instance_id": instance}
        if claim == "nothing" or not self.given[instance]:
            return {}
        place = 0 if claim == "first generation" else -1
        return {"instance_id": instance, "generation": self.given[instance][place]}

    def send(self, action: str, claims: dict[str, Any]) -> Any:
        path = f"/services/{self.name}"
        if action == "heartbeat":
            return self.registry.call("POST", path + "/heartbeat", json=claims)
        if action == "update":
            return self.registry.call("PUT", path, json={**claims, "weight": self.weight + 1})
        return self.registry.call("DELETE", path, params=claims)

    def check(self, action: str, claims: dict[str, Any], answer: Any) -> None:
        if self.owner is None:
            assert answer.status_code == 404
            assert answer.json().get("re_register", False) is (action == "heartbeat")
            return
        registered = dict(zip(("instance_id", "generation"), self.owner, strict=True))
        if any(registered[key] != value for key, value in claims.items()):
            assert (answer.status_code, answer.json()["generation"]) == (409, self.owner[1])
            return
        assert answer.status_code == 200
        if action == "update":
            self.weight += 1
        elif action == "remove":
            self.owner = None

    def shown(self) -> dict[str, Any] | None:
        answer = self.registry.call("GET", f"/services/{self.name}")
        return answer.json() if answer.status_code == 200 else None


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=steps)
def test_whatever_the_order_only_the_last_registered_instance_is_heard(
    shared: Any, body: Body, steps: list[tuple[str, str, str]]
) -> None:
    contest = Contest(shared, body)
    for instance, action, claim in steps:
        contest.play(instance, action, claim)
