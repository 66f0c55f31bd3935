"""R25: we never serve somebody else's process."""

import os
import socket
import urllib.request

from rig.processes import free_port, wait_until


def test_r25_a_port_held_by_a_stranger_is_told_with_its_owner_and_never_registered(
    babysit, registry, foreign
) -> None:
    port = free_port()
    stranger = foreign(port)
    babysat = babysit(port=port, registry_url=registry.url)
    babysat.program.wait_listening()
    babysat.program.wait_for_line(f"port in use .*port {port} is held by pid {os.getpid()} ", 2.0)
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


def test_r25_a_stranger_on_another_address_of_the_same_port_counts(babysit) -> None:
    port = free_port()
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.2", port))
        stranger.listen()
        babysat = babysit(port=port)
        babysat.program.wait_for_line("port in use")
        assert babysat.journal() == []


def test_the_restart_after_a_crash_works_while_connections_linger(babysit) -> None:
    babysat = babysit()
    babysat.wait_for_state("ready")
    with socket.create_connection(("127.0.0.1", babysat.port)) as client:
        os.kill(babysat.engine_pid(), 9)
        wait_until(lambda: len(babysat.journal("start")) == 2, what="second start")
        babysat.wait_for_state("ready")
        client.close()


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
