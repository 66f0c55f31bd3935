"""POST /restart, /drain, /undrain and GET /logs on port + 1."""

import json
import os
import signal
import socket
import urllib.error
import urllib.request
from typing import Any

import pytest

from rig.held_request import HeldRequest
from rig.processes import wait_until

TOKEN = {"INFINILM_ADMIN_TOKEN": "canary-admin-token"}
CALLS = [("POST", "/restart"), ("POST", "/drain"), ("POST", "/undrain"), ("GET", "/logs")]


def call(
    babysat, method: str, path: str, headers: dict[str, str] | None = None, host: str = "127.0.0.1"
) -> tuple[int, str]:
    url = f"http://{host}:{babysat.port + 1}{path}"
    request = urllib.request.Request(url, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def order(babysat, path: str) -> dict[str, Any]:
    status, body = call(babysat, "POST", path)
    assert status == 202, body
    answer: dict[str, Any] = json.loads(body)
    return answer


def test_a_restart_announces_drains_stops_and_starts_again(serving, registry, router) -> None:
    held = HeldRequest(serving.port)
    assert order(serving, "/restart")["message"] == "restart ordered"
    wait_until(lambda: registry.status(serving.engine_name) == "draining", what="announced")
    assert serving.get("/health")[1]["status"] == "draining"
    asked = len(router.calls)
    wait_until(lambda: len(router.calls) >= asked + 2, what="routers are asked")
    assert serving.journal("sigterm") == []
    router.sending.clear()
    serving.switch("release")
    held.wait()
    wait_until(lambda: len(serving.journal("start")) == 2, what="second start")
    serving.wait_for_state("ready")
    wait_until(lambda: registry.status(serving.engine_name) == "running", what="told again")
    assert held.body == b"halfdone"
    (sigterm,) = serving.journal("sigterm")
    assert sigterm["time"] >= held.finished
    assert serving.get("/health")[1]["restarts"] == 0, "nothing has crashed"
    assert registry.seen("DELETE", f"/services/{serving.engine_name}") == []


def test_a_drained_engine_serves_nobody_until_it_is_undrained(serving, registry, router) -> None:
    router.sending.clear()
    order(serving, "/drain")
    wait_until(lambda: serving.get("/health")[1]["drained"], what="drained")
    status, health = serving.get("/health")
    assert (status, health["state"], health["detail"]) == (503, "draining", "drained")
    assert registry.status(serving.engine_name) == "draining"
    beat = f"/services/{serving.engine_name}/heartbeat"
    beats = len(registry.seen("POST", beat))
    wait_until(lambda: len(registry.seen("POST", beat)) > beats + 2, what="heartbeats go on")
    assert {each.body["status"] for each in registry.seen("POST", beat)[beats:]} == {"draining"}
    assert serving.journal("sigterm") == []

    order(serving, "/undrain")
    wait_until(lambda: serving.get("/health")[0] == 200, what="serves again")
    wait_until(lambda: registry.status(serving.engine_name) == "running", what="told again")
    assert len(serving.journal("start")) == 1


def test_a_drained_engine_is_restarted_and_serves(serving, registry, router) -> None:
    router.sending.clear()
    order(serving, "/drain")
    wait_until(lambda: serving.get("/health")[1]["drained"], what="drained")
    order(serving, "/restart")
    wait_until(lambda: len(serving.journal("start")) == 2, what="second start")
    serving.wait_for_state("ready")
    assert serving.get("/health")[1]["drained"] is False


def test_a_drained_babysitter_stops_without_waiting_again(serving, registry, router) -> None:
    router.sending.clear()
    order(serving, "/drain")
    wait_until(lambda: serving.get("/health")[1]["drained"], what="drained")
    router.sending.add("test-server")  # would be waited for
    assert serving.program.stop() == 0
    assert registry.services == {}


def test_a_restart_does_not_wait_for_the_end_of_a_back_off(babysit) -> None:
    babysat = babysit(switches={"exit": "3"}, babysitter={"restart_delay": 3600})
    babysat.wait_for_state("backoff")
    babysat.switch("exit", on=False)
    order(babysat, "/restart")
    babysat.wait_for_state("ready")


def test_the_log_is_shown_from_memory_and_without_secrets(babysit) -> None:
    env = {"HF_TOKEN": "canary-environment", **TOKEN}
    babysat = babysit(env=env, switches={"say": SAID})
    babysat.wait_for_state("ready")
    right = {"Authorization": "Bearer canary-admin-token"}

    def log(lines: str = "") -> str:
        status, text = call(babysat, "GET", f"/logs{lines}", right)
        assert status == 200
        return text

    wait_until(lambda: "last of it" in log(), what="all of it read")
    assert log().splitlines() == ["engine says hello", *SHOWN.splitlines()]
    assert log("?lines=1") == "last of it\n"
    os.kill(babysat.engine_pid(), signal.SIGKILL)
    wait_until(lambda: log().count("engine says hello") == 2, what="the next engine's log")
    assert "canary" not in babysat.program.output


SAID = """\
api_server args: {'api_key': ['canary-key-1'], 'max_tokens': 4096}
Authorization: Bearer canary-key-2
HF_TOKEN=canary-environment and canary-environment again
total token: 12345678
last of it
"""
SHOWN = """\
api_server args: {'api_key': ['***'], 'max_tokens': 4096}
Authorization: Bearer ***
HF_TOKEN=*** and *** again
total token: 12345678
last of it
"""


def test_a_number_of_lines_that_makes_no_sense_is_refused(babysit) -> None:
    babysat = babysit()
    babysat.program.wait_listening()
    for lines in ("0", "-1", "x", "1001", "", "\u0661"):
        status, body = call(babysat, "GET", f"/logs?lines={urllib.request.quote(lines)}")
        assert status == 400, lines
        assert "whole number from 1 to 1000" in json.loads(body)["error"]


def test_with_a_token_only_those_who_know_it_may_do_anything(babysit) -> None:
    babysat = babysit(env=TOKEN)
    babysat.wait_for_state("ready")
    for method, path in CALLS:
        for headers in ({}, {"Authorization": "Bearer canary-wrong"}):
            status, body = call(babysat, method, path, headers)
            assert status == 401
            assert "error" in json.loads(body)
    assert babysat.state() == "ready"
    assert "ordered" not in babysat.program.output
    assert call(babysat, "POST", "/drain", {"Authorization": "Bearer canary-admin-token"})[0] == 202
    assert [entry["admin_token"] for entry in babysat.journal("start")] == [None]


def test_without_a_token_only_this_machine_may_do_anything(babysit) -> None:
    babysat = babysit()
    babysat.wait_for_state("ready")
    own_address = outward_address()
    for method, path in CALLS:
        status, body = call(babysat, method, path, host=own_address)
        assert status == 403
        assert "INFINILM_ADMIN_TOKEN" in json.loads(body)["error"]
    assert "ordered" not in babysat.program.output
    os.kill(babysat.engine_pid(), signal.SIGKILL)
    wait_until(lambda: babysat.get("/info")[1]["last_exit"], what="exit seen")
    assert babysat.get("/info")[1]["last_exit"]["log"] == ["engine says hello"]
    with urllib.request.urlopen(f"http://{own_address}:{babysat.port + 1}/info") as answer:
        assert json.load(answer)["last_exit"]["log"] is None, "it may hold users' prompts"


def outward_address() -> str:
    """An address of this machine that is not loopback; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])
