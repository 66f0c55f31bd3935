"""The page for Prometheus: what it counts, and that it stays small."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from infinilm_registry.metrics import RESULTS, result_of
from rig.processes import wait_until

Body = Callable[..., dict[str, Any]]
SAMPLE = re.compile(r'(infinilm_registry_[a-z_]+(?:\{(?:[a-z]+="[a-z_]+",?)+\})?) ([0-9.e+]+)')


def page(registry: Any) -> dict[str, float]:
    """Every sample by name and labels, without the common prefix."""
    answer = registry.call("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    matches = [SAMPLE.fullmatch(line) for line in samples]
    assert all(matches), samples
    described = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    assert described == {re.split(r"[{ ]", line)[0] for line in samples}
    return {m[1].removeprefix("infinilm_registry_"): float(m[2]) for m in matches if m}


def counted(found: dict[str, float], label: str) -> dict[str, float]:
    """The samples with that label that are not 0."""
    return {name: value for name, value in found.items() if f"{label}=" in name and value}


def test_writes_and_heartbeats_are_counted_by_result(start: Any, body: Body) -> None:
    registry = start("--write-rate", "0.01", "--write-burst", "6")
    registry.register(body("a", instance_id="i"))
    registry.register(body("b", status="draining"))
    registry.register(body("c", port=0))
    registry.call("PUT", "/services/a", json={"weight": 2, "instance_id": "other"})
    registry.call("DELETE", "/services/none")
    registry.call("DELETE", "/services/b")
    registry.register(body("d"))
    for name in ("a", "a", "none"):
        registry.call("POST", f"/services/{name}/heartbeat")
    registry.call("POST", "/services/a/heartbeat", json={"instance_id": "other"})
    registry.call("PATCH", "/services")
    registry.get("/services")
    assert counted(page(registry), "result") == {
        'writes_total{call="register",result="ok"}': 2,
        'writes_total{call="register",result="invalid"}': 1,
        'writes_total{call="register",result="limited"}': 1,
        'writes_total{call="update",result="other_instance"}': 1,
        'writes_total{call="remove",result="unknown"}': 1,
        'writes_total{call="remove",result="ok"}': 1,
        'heartbeats_total{result="ok"}': 2,
        'heartbeats_total{result="unknown"}': 1,
        'heartbeats_total{result="other_instance"}': 1,
    }


@pytest.mark.parametrize(
    ("status", "word"),
    [
        *((200, "ok"), (201, "ok"), (413, "invalid"), (401, "denied")),
        *((503, "unavailable"), (500, "failed")),
    ],
)
def test_every_answer_has_a_word(status: int, word: str) -> None:
    assert result_of(status) == word
    assert word in RESULTS


def test_gauges_follow_the_services_and_expiries_are_counted(start: Any, body: Body) -> None:
    registry = start("--heartbeat-timeout", "1", "--removal-timeout", "100")
    registry.register(body("up", heartbeat_interval=10))
    registry.register(body("drains", status="draining", heartbeat_interval=10))
    registry.register(body("odd", status="half asleep", heartbeat_interval=10))
    found = page(registry)
    assert counted(found, "status") == {
        'services{status="running"}': 1,
        'services{status="draining"}': 1,
        'services{status="other"}': 1,
    }
    assert (found["services_healthy"], found["expired_total"]) == (1, 0)
    assert (found["heartbeat_share"], found["self_preservation"], found["watchers"]) == (1, 0, 0)
    registry.register(body("up"))
    wait_until(lambda: page(registry)["expired_total"] == 1, what="expiry")
    assert page(registry)["services_healthy"] == 0


def test_a_store_that_is_down_shows(start: Any, body: Body, tmp_path: Any) -> None:
    full = ["prlimit", "--fsize=1000:"]
    registry = start("--store", tmp_path / "r.sqlite3", prefix=full)
    assert registry.register(body(metadata={"x": "y" * 9000})).status_code == 503
    found = page(registry)
    assert (found["store_degraded"], found["store_down"]) == (1, 1)
    assert found['writes_total{call="register",result="unavailable"}'] == 1


def test_r41_odd_registrations_make_no_series(shared: Any, body: Body) -> None:
    before = page(shared).keys()
    for number in range(300):
        status = f"status {number}"
        shared.register(body(f"n{number}", status=status, metadata={"models": [f"m{number}"]}))
        shared.call("DELETE", f"/services/unknown{number}")
    assert page(shared).keys() == before
    assert len(before) < 60
