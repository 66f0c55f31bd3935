"""R25: we never serve somebody else's process."""

import contextlib
import http.client
import os
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from rig.processes import free_port, wait_until


def test_r25_a_port_held_by_a_stranger_is_told_with_its_owner_and_never_registered(
    babysit, registry, foreign
) -> None:
    port = free_port()
    stranger = foreign(port)
    babysat = babysit(port=port, registry_url=registry.url)
    babysat.program.wait_listening()
    began = time.monotonic()
    babysat.program.wait_for_line(f"port in use .*port {port} is held by pid {os.getpid()} ")
    took = time.monotonic() - began
    print(f"R25 a taken port is told {took:.2f} s after the babysitter began, with the owner's pid")
    assert took <= 2.0
    wait_until(lambda: registry.status(babysat.name) == "running", what="own registration")
    status, health = babysat.get("/health")
    assert (status, health["state"]) == (503, "backoff")
    assert f"held by pid {os.getpid()}" in health["detail"]
    assert babysat.journal() == [], "no engine is even started"
    assert babysat.engine_name not in registry.services

    with urllib.request.urlopen(f"{stranger.url}/v1/models") as answer:
        answer.read()
    stranger.close()  # the connection leaves the port in TIME_WAIT
    babysat.wait_for_state("ready")
    wait_until(lambda: registry.status(babysat.engine_name) == "running")
    assert stranger.seen("GET", "/v1/models")[1:] == [], "the babysitter never asked it"


def test_r25_a_stranger_that_takes_the_port_while_the_engine_starts_is_not_registered(
    babysit, registry, foreign
) -> None:
    babysat = babysit(engine=("--silent",), registry_url=registry.url)
    wait_until(lambda: babysat.journal("start"), what="engine started")
    foreign(babysat.port)
    babysat.program.wait_for_line(f"engine is ended reason='port .* held by pid {os.getpid()} ")
    babysat.wait_for_state("backoff")
    assert babysat.engine_name not in registry.services


def test_r25_routers_are_told_at_once_when_a_stranger_takes_the_port_of_a_ready_engine(
    babysit, registry, foreign
) -> None:
    slow = {"stop_timeout": 3600}  # its worker does not end when it is asked to
    babysat = babysit(engine=("--worker",), registry_url=registry.url, babysitter=slow)
    wait_until(lambda: registry.status(babysat.engine_name) == "running", what="registered")
    babysat.switch("closed")
    wait_until(lambda: took_port(foreign, babysat.port), what="port taken")
    babysat.program.wait_for_line(f"engine is ended reason='port .* held by pid {os.getpid()} ")
    status, health = babysat.get("/health")
    assert (status, health["state"]) == (503, "draining")
    assert f"held by pid {os.getpid()}" in health["detail"]
    wait_until(lambda: registry.status(babysat.engine_name) == "draining", what="told")
    assert babysat.tree() != [], "it is still being ended"


def took_port(foreign, port: int) -> bool:
    with contextlib.suppress(OSError):
        foreign(port)
        return True
    return False


def test_r25_a_stranger_on_another_address_of_the_same_port_counts(babysit) -> None:
    port = free_port()
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.2", port))
        stranger.listen()
        babysat = babysit(port=port)
        babysat.program.wait_for_line("port in use")
        assert babysat.journal() == []


def time_waits(port: int) -> int:
    """Connections of `port` that linger in TIME_WAIT, after this side closed them first."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = (line.split() for line in lines)
    return sum(each[1].endswith(f":{port:04X}") and each[3] == "06" for each in fields)


def crash_with_lingering_connection(babysat) -> None:
    """The engine's side closes first, as it is killed; then the client closes too."""
    client = http.client.HTTPConnection("127.0.0.1", babysat.port, timeout=10)
    with contextlib.closing(client):
        client.request("GET", "/health")
        client.getresponse().read()  # the engine has taken the connection, and keeps it
        os.kill(babysat.engine_pid(), 9)
        assert client.sock.recv(1) == b""
    wait_until(lambda: time_waits(babysat.port) > 0, what="TIME_WAIT")


def test_r25_the_restart_after_a_crash_works_with_the_port_in_time_wait(babysit) -> None:
    babysat = babysit(babysitter={"restart_delay": 0.5})
    babysat.wait_for_state("ready")
    crash_with_lingering_connection(babysat)
    wait_until(lambda: len(babysat.journal("start")) == 2, what="second start")
    babysat.wait_for_state("ready")
    assert time_waits(babysat.port) > 0, "it was there all the time"
    assert "port in use" not in babysat.program.output
    assert len(babysat.journal("start")) == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_r25_an_engine_that_cannot_take_a_port_in_time_wait_comes_back_after_it(babysit) -> None:
    babysat = babysit(engine=("--no-reuse",), babysitter={"restart_delay": 0.5, "backoff_max": 2})
    babysat.wait_for_state("ready")
    began = time.monotonic()
    crash_with_lingering_connection(babysat)
    wait_until(lambda: len(babysat.journal("start")) >= 3, what="an attempt that fails")
    babysat.wait_for_state("ready", timeout=120)
    print(f"R25 without SO_REUSEADDR the restart took {time.monotonic() - began:.0f} s")


def test_a_taken_port_above_the_engines_is_a_clear_error(babysit, foreign) -> None:
    port = free_port()
    foreign(port + 1)
    babysat = babysit(port=port)
    assert babysat.program.wait() == 1
    assert f"port {port + 1} is held by pid {os.getpid()} " in babysat.program.output
    assert "the babysitter's own port, the engine's plus 1" in babysat.program.output


def test_port_0_takes_a_free_pair_and_says_which(run) -> None:
    program = run.python(
        "babysitter/enhanced_babysitter.py",
        *("--service-type", "command", "--command", "sleep 60", "-p", "0", "--bind", "127.0.0.1"),
        *("--log-dir", "/dev/null"),
    )
    url = program.wait_listening()
    port = int(url.rpartition(":")[2]) - 1
    program.wait_for_line(f"name=infinilm-command-{port} .*engine_port={port}")
    assert program.stop() == 0
