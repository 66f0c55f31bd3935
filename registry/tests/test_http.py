"""The contract's calls on a real process."""

import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest

from infinilm_registry.client import RegistryClient
from rig.processes import wait_until

Body = Callable[..., dict[str, Any]]


def test_a_service_lives_from_registration_to_removal(shared: Any, body: Body) -> None:
    answer = shared.register(body("life", metadata={"type": "openai-api"}, weight=2, extra="x"))
    assert answer.status_code == 201
    created = answer.json()
    assert (created["ttl"], created["heartbeat_interval"]) == (120, 10)
    shown = shared.get("/services/life")
    assert shown == created["service"]
    assert shown["generation"] == created["generation"] >= 1
    assert set(shown) >= {
        *("name", "host", "port", "hostname", "url", "status", "timestamp", "last_heartbeat"),
        *("health_status", "metadata", "weight", "is_healthy"),
    }
    assert (shown["weight"], shown["is_healthy"], shown["health_status"]) == (2, True, "unknown")

    changed = shared.call("PUT", "/services/life", json={"status": "draining", "port": 1003})
    assert changed.status_code == 200
    assert changed.json()["service"]["url"] == "http://127.0.0.1:1003"
    assert shared.get("/services/life")["is_healthy"] is False

    beat = shared.call("POST", "/services/life/heartbeat", json={"status": "running"})
    assert beat.json()["message"] == "Heartbeat received"
    assert shared.get("/services/life")["is_healthy"] is True

    assert shared.call("DELETE", "/services/life").status_code == 200
    assert shared.call("GET", "/services/life").json() == {"error": "Service 'life' not found"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/services/none"),
        ("PUT", "/services/none"),
        ("DELETE", "/services/none"),
        ("GET", "/services/none/health"),
        ("POST", "/services/none/heartbeat"),
    ],
)
def test_an_unknown_name_is_a_404_and_a_heartbeat_is_told_to_register(
    shared: Any, method: str, path: str
) -> None:
    answer = shared.call(method, path, json={})
    assert answer.status_code == 404
    assert answer.json()["error"] == "Service 'none' not found"
    assert answer.json().get("re_register", False) is path.endswith("heartbeat")


def test_health_and_stats_count(shared: Any, body: Body) -> None:
    shared.register(body("counted"))
    shared.register(body("idle", status="starting"))
    health, stats = shared.get("/health"), shared.get("/stats")
    assert (health["status"], health["registry"], health["degraded"]) == (
        "healthy",
        "running",
        False,
    )
    assert health["registered_services"] == stats["total_services"] >= 2
    assert health["healthy_services"] == stats["healthy_services"]
    assert stats["unhealthy_services"] == stats["total_services"] - stats["healthy_services"]
    assert stats["status_distribution"]["starting"] >= 1
    assert stats["host_distribution"]["127.0.0.1"] >= 2
    assert stats["uptime"] > 0
    assert datetime.fromisoformat(health["timestamp"]).utcoffset() is not None


def test_lists_are_filtered_and_compact(shared: Any, body: Body) -> None:
    shared.register(body("up"))
    shared.register(body("drains", status="draining"))
    assert {"up", "drains"} <= shared.names()
    assert "up" in shared.names("?healthy=true") - shared.names("?healthy=false")
    assert "drains" in shared.names("?healthy=false") - shared.names("?healthy=true")
    assert "drains" in shared.names("?status=draining")
    assert shared.names("?status=draining&healthy=true") == set()
    text = shared.call("GET", "/services").text
    assert '"name":"up"' in text
    assert ": " not in text


def test_every_fault_of_a_body_is_in_the_answer(shared: Any, body: Body) -> None:
    answer = shared.register({"name": "a b", "host": "127.0.0.1", "port": "x", "status": "running"})
    assert answer.status_code == 400
    assert answer.json()["error"] == "Missing required field: hostname"
    keys = [fault["key"] for fault in answer.json()["errors"]]
    assert keys == ["hostname", "url", "name", "port"]
    assert answer.json()["errors"][2]["value"] == "a b"


@pytest.mark.parametrize(
    ("options", "status", "error"),
    [
        ({"data": b"{"}, 400, "Invalid JSON"),
        ({"data": b""}, 400, "Invalid JSON"),
        ({"data": b"[" * 60_000}, 400, "Invalid JSON"),
        ({"data": b"[]"}, 400, "Invalid value for body: must be a JSON object"),
        ({"data": b'{"weight": 1e999}'}, 400, "Invalid JSON"),
        ({"data": b'{"metadata": {"x": -1e999}}'}, 400, "Invalid JSON"),
        ({"data": b"x" * 65_537}, 413, "The body is larger than 65536 bytes"),
        ({"data": b"{}", "headers": {"Content-Encoding": "gzip"}}, 415, None),
    ],
)
def test_bodies_that_are_not_read_are_refused_as_json(
    shared: Any, options: dict[str, Any], status: int, error: str | None
) -> None:
    answer = shared.call("POST", "/services", **options)
    assert answer.status_code == status
    assert error in (None, answer.json()["error"])


@pytest.mark.parametrize("key", ["weight", "heartbeat_interval"])
def test_a_number_of_any_length_is_judged(shared: Any, body: Body, key: str) -> None:
    answer = shared.register(body("long", **{key: 10**400}))
    assert answer.status_code == 400
    assert [fault["key"] for fault in answer.json()["errors"]] == [key]


def test_unknown_paths_and_methods_are_answered_in_json(shared: Any) -> None:
    missing, wrong = shared.call("GET", "/nowhere"), shared.call("PATCH", "/services")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert missing.json()["error"] == "No such path: /nowhere"
    assert {"GET", "POST"} <= set(wrong.headers["Allow"].split(","))
    assert "error" in wrong.json()


@pytest.mark.parametrize("query", ["since=x", "since=-1", "since=1&wait=x", "wait=-1", "wait=nan"])
def test_a_faulty_watch_is_a_400(shared: Any, query: str) -> None:
    answer = shared.call("GET", f"/services?{query}")
    assert answer.status_code == 400
    assert answer.json()["errors"]


def test_another_instance_cannot_remove_change_or_renew(shared: Any, body: Body) -> None:
    first = shared.register(body("owned", instance_id="first")).json()["generation"]
    second = shared.register(body("owned", instance_id="second")).json()["generation"]
    assert second == first + 1
    before = shared.get("/services/owned")
    late = [
        shared.call("DELETE", "/services/owned?instance_id=first"),
        shared.call("DELETE", "/services/owned", json={"instance_id": "first"}),
        shared.call("PUT", "/services/owned", json={"instance_id": "first", "weight": 9}),
        shared.call("POST", "/services/owned/heartbeat", json={"instance_id": "first"}),
        shared.call("POST", "/services/owned/heartbeat?instance_id=first"),
        shared.call("POST", f"/services/owned/heartbeat?instance_id=second&generation={first}"),
        shared.call("DELETE", f"/services/owned?generation={first}"),
        shared.call("PUT", "/services/owned", json={"generation": first, "weight": 9}),
    ]
    assert [answer.status_code for answer in late] == [409] * 8
    assert late[0].json()["generation"] == second
    assert shared.get("/services/owned") == before
    assert shared.call("POST", "/services/owned/heartbeat?instance_id=second").status_code == 200
    assert shared.call("DELETE", "/services/owned?instance_id=second").status_code == 200


def test_who_was_removed_cannot_harm_who_came_after(shared: Any, body: Body) -> None:
    first = shared.register(body("again")).json()["generation"]
    assert shared.call("DELETE", "/services/again").status_code == 200
    second = shared.register(body("again")).json()["generation"]
    assert second > first
    late = shared.call("DELETE", f"/services/again?generation={first}")
    assert (late.status_code, late.json()["generation"]) == (409, second)


def test_a_watch_is_answered_when_the_list_changes_and_only_then(
    shared: Any, body: Body, timer: Callable[[], float]
) -> None:
    shared.register(body("watched"))
    revision = shared.get("/services?healthy=true")["revision"]
    path = f"/services?healthy=true&since={revision}"
    assert shared.call("GET", path).status_code == 304
    quiet = shared.call("GET", path + "&wait=0.2")
    assert quiet.status_code == 304
    assert quiet.headers["ETag"] == f'W/"{revision}"'
    with ThreadPoolExecutor(1) as pool, RegistryClient(shared.url) as watcher:
        waiting = pool.submit(watcher.watch, revision, 30, healthy=True)
        wait_until(lambda: shared.get("/stats")["watchers"])
        shared.call("POST", "/services/watched/heartbeat")
        shared.call("PUT", "/services/watched", json={"status": "draining"})
        answer = waiting.result(10)
    assert answer is not None
    assert answer["revision"] > revision
    assert "watched" not in {service["name"] for service in answer["services"]}
    assert shared.call("GET", path + "&wait=30").status_code == 200
    assert timer() < 25


def test_an_etag_saves_the_list(shared: Any, body: Body) -> None:
    shared.register(body("tagged"))
    tag = shared.call("GET", "/services").headers["ETag"]
    shared.call("POST", "/services/tagged/heartbeat")
    assert shared.call("GET", "/services", headers={"If-None-Match": tag}).status_code == 304
    shared.call("PUT", "/services/tagged", json={"weight": 3})
    assert shared.call("GET", "/services", headers={"If-None-Match": tag}).status_code == 200


def test_stop_answers_watchers_and_exits_0(start: Any) -> None:
    registry = start()
    revision = registry.get("/services")["revision"]
    watchers = []
    for _ in range(200):
        watchers.append(socket.create_connection(registry.url[7:].split(":"), timeout=20))
        path = f"/services?since={revision}&wait=60"
        watchers[-1].sendall(f"GET {path} HTTP/1.1\r\nHost: r\r\n\r\n".encode())
    wait_until(lambda: registry.get("/stats")["watchers"] == 200)
    assert registry.program.stop(timeout=5) == 0
    for watcher in watchers:
        with watcher:
            assert watcher.recv(12) == b"HTTP/1.1 304"


def test_a_watcher_that_left_is_forgotten(start: Any) -> None:
    registry = start()
    revision = registry.get("/services")["revision"]
    with socket.create_connection(registry.url[7:].split(":"), timeout=20) as watcher:
        watcher.sendall(
            f"GET /services?since={revision}&wait=60 HTTP/1.1\r\nHost: r\r\n\r\n".encode()
        )
        wait_until(lambda: registry.get("/stats")["watchers"] == 1)
    wait_until(lambda: registry.get("/stats")["watchers"] == 0)


def test_r33_writes_need_the_token_and_reads_do_not(start: Any, body: Body) -> None:
    registry = start(env={"INFINILM_REGISTRY_TOKEN": "secret"})
    good = {"Authorization": "Bearer secret"}
    assert registry.call("POST", "/services", json=body(), headers=good).status_code == 201
    before = registry.get("/services/engine")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
        for method, path in (
            ("POST", "/services"),
            ("PUT", "/services/engine"),
            ("DELETE", "/services/engine"),
            ("POST", "/services/engine/heartbeat"),
        ):
            answer = registry.call(method, path, json=body(weight=9), headers=headers)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "error" in answer.json()
    assert registry.get("/services/engine") == before
    with RegistryClient(registry.url, token="secret") as client:
        assert client.heartbeat("engine")["ttl"] == 120
    assert "secret" not in registry.program.output


def test_r33_200_wrong_tokens_write_nothing(start: Any, body: Body) -> None:
    registry = start("--write-burst", "1000", env={"INFINILM_REGISTRY_TOKEN": "s3cret-Token"})
    dice = random.Random(33)
    right = "Bearer s3cret-Token"
    for _ in range(200):
        spoiled = list(right)
        spoiled[dice.randrange(7, len(right))] = chr(dice.randrange(0x21, 0x7F))
        wrong = "".join(spoiled)
        if wrong == right:
            wrong = right[: dice.randrange(len(right))]
        method, path = dice.choice([("POST", "/services"), ("DELETE", "/services/engine")])
        answer = registry.call(method, path, json=body(), headers={"Authorization": wrong})
        assert answer.status_code == 401, wrong
    assert registry.names() == set()


def test_r33_a_web_page_cannot_write_without_a_token(shared: Any, body: Body) -> None:
    headers = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
    answer = shared.call("POST", "/services", json=body("evil"), headers=headers)
    assert answer.status_code == 403
    assert "evil" not in shared.names()


def test_writes_beyond_the_limit_are_told_to_wait_and_heartbeats_are_not(
    start: Any, body: Body
) -> None:
    registry = start("--write-rate", "0.01", "--write-burst", "3")
    codes = [registry.register(body(f"e{n}")).status_code for n in range(5)]
    assert codes == [201, 201, 201, 429, 429]
    refused = registry.register(body())
    assert int(refused.headers["Retry-After"]) > 60
    beats = [registry.call("POST", "/services/e0/heartbeat").status_code for _ in range(20)]
    assert beats == [200] * 20


def test_500_babysitters_at_once_are_all_taken(start: Any, body: Body, tmp_path: Any) -> None:
    registry = start("--store", tmp_path / "r.sqlite3")

    def babysitter(number: int) -> set[int]:
        own, engine = body(f"b{number}", port=1002), body(f"b{number}-server")
        return {registry.register(one).status_code for one in (own, engine)}

    with ThreadPoolExecutor(8) as pool:
        codes = set().union(*pool.map(babysitter, range(500)))
    assert codes == {201}
    assert registry.get("/health")["registered_services"] == 1000


def test_r34_with_allowed_networks_names_are_resolved(start: Any, body: Body) -> None:
    inside = start("--allowed-networks", "127.0.0.0/8,::1/128")
    assert inside.register(body(host="localhost")).status_code == 201
    assert inside.register(body(host="10.0.0.1")).status_code == 400
    outside = start("--allowed-networks", "10.0.0.0/8")
    for host in ("localhost", "127.0.0.1", "no-such-host.invalid"):
        answer = outside.register(body(host=host))
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["key"] == "host"
    assert outside.register(body(host="10.1.1.1")).status_code == 201
    moved = outside.call("PUT", "/services/engine", json={"host": "localhost"})
    assert moved.status_code == 400
    assert outside.get("/services/engine")["host"] == "10.1.1.1"


def test_addresses_that_are_not_allowed_any_more_are_dropped_at_the_start(
    start: Any, body: Body, tmp_path: Any
) -> None:
    store = ("--store", tmp_path / "r.sqlite3")
    first = start(*store)
    first.register(body("inside", host="10.0.0.1"))
    first.register(body("outside"))
    assert first.program.stop() == 0
    assert start(*store, "--allowed-networks", "10.0.0.0/8").names() == {"inside"}


def test_a_port_in_use_is_said_with_exit_1(start: Any, run: Any) -> None:
    port = start().url.rsplit(":", 1)[1]
    flags = ("--host", "127.0.0.1", "--port", port, "--store", "memory")
    second = run.python("registry/service_registry.py", *flags)
    assert second.wait() == 1
    assert "cannot listen on 127.0.0.1" in second.output


def test_a_chosen_store_in_use_is_said_with_exit_1(start: Any, run: Any, tmp_path: Any) -> None:
    store = ("--store", tmp_path / "r.sqlite3")
    start(*store)
    second = run.python("registry/service_registry.py", "--port", "0", *store)
    assert second.wait() == 1
    assert "in use by another registry" in second.output


def test_the_documented_command_works_from_any_directory(run: Any, tmp_path: Any) -> None:
    flags = ("--host", "127.0.0.1", "--port", "0", "--store", "s.sqlite3")
    program = run.python("registry/service_registry.py", *flags, cwd=tmp_path)
    assert program.wait_listening()
    assert program.stop() == 0
    assert (tmp_path / "s.sqlite3").is_file()
