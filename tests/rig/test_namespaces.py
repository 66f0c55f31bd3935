"""Hosts reach each other, cables can be pulled, ports dropped or rejected; nothing is left over."""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.engine_process import EngineProcess
from rig.namespaces import NAMED, Host, network
from rig.processes import Programs, programs
from rig.raw_client import RawClient, ask, request_bytes
from rig.routers import Router, router_names, write_static

Hosts = dict[str, Host]


@pytest.fixture
def net() -> Iterator[Hosts]:
    with network("client", "engines", "other") as hosts:
        yield hosts


@pytest.fixture
def engine(net: Hosts, run: Programs) -> EngineProcess:
    with net["engines"].inside():
        return EngineProcess(run, "e", ["m"], host=net["engines"].address).wait()


def reach(host: Host, engine: EngineProcess, timeout: float = 5) -> str:
    """What becomes of a request from a host: its status, or the error's name."""
    try:
        with host.inside(), RawClient(f"http://{engine.host}:{engine.port}", timeout) as client:
            client.send(request_bytes("POST", "/v1/x"))
            return str(client.read().status)
    except OSError as error:
        return type(error).__name__


def links() -> list[str]:
    """The names of the machine's own network interfaces."""
    return [name for _, name in socket.if_nameindex()]


def test_hosts_reach_each_other_and_the_machine_has_no_new_interface() -> None:
    before = links()
    with network("client", "engines") as net, programs() as run:
        with net["engines"].inside():
            engine = EngineProcess(run, "e", ["m"], host=net["engines"].address).wait()
            assert links() != before
        assert reach(net["client"], engine) == "200"
        assert reach(net["engines"], engine) == "200"
        assert links() == before


def test_a_thread_and_a_program_started_inside_are_on_the_host(net: Hosts, run: Programs) -> None:
    def addresses() -> str:
        return run.start("ip", "-o", "-4", "address").wait_for_line("eth0").string

    seen: list[str] = []
    with net["client"].inside():
        thread = threading.Thread(target=lambda: seen.append(addresses()))
        thread.start()
        seen.append(addresses())
    thread.join(10)
    assert [net["client"].address in line for line in seen] == [True, True]
    here = Path("/proc/self/ns/net").readlink()
    assert Path("/proc/thread-self/ns/net").readlink() == here


def test_a_pulled_cable_loses_packets_without_a_word_until_it_is_back(
    net: Hosts, engine: EngineProcess
) -> None:
    with net["client"].inside(), RawClient(f"http://{engine.host}:{engine.port}", 10) as client:
        net["engines"].link(up=False)
        client.send(request_bytes("POST", "/v1/x"))
        assert client.read_end(0.2) == "open"
        assert reach(net["other"], engine, 0.2) == "TimeoutError"
        net["engines"].link(up=True)
        assert client.read("POST").status == 200, "what was under way is sent again"


def test_a_dropped_port_is_silent_and_a_rejected_one_answers_with_a_reset(
    net: Hosts, engine: EngineProcess
) -> None:
    host = net["engines"]
    host.drop(engine.port)
    assert reach(net["client"], engine, 0.2) == "TimeoutError"
    host.clear()
    host.reject(engine.port)
    assert reach(net["client"], engine) == "ConnectionRefusedError"
    host.clear()
    assert reach(net["client"], engine) == "200"


def test_a_port_can_be_dropped_for_one_peer_only(net: Hosts, engine: EngineProcess) -> None:
    net["engines"].drop(engine.port, net["client"])
    assert reach(net["client"], engine, 0.2) == "TimeoutError"
    assert reach(net["other"], engine) == "200"


def test_a_rejected_port_ends_open_connections(net: Hosts, engine: EngineProcess) -> None:
    with net["client"].inside(), RawClient(f"http://{engine.host}:{engine.port}") as client:
        client.send(request_bytes("POST", "/v1/x"))
        client.read("POST")
        net["engines"].reject(engine.port)
        client.send(request_bytes("POST", "/v1/x"))
        assert client.read_end(5) == "reset"


@pytest.mark.parametrize("name", router_names())
def test_a_router_serves_between_hosts(
    net: Hosts, engine: EngineProcess, run: Programs, tmp_path: Path, name: str
) -> None:
    static = write_static(tmp_path / "s.json", [engine.static(metadata={"models": ["m"]})])
    flags = {"host": net["other"].address, "static-services": static, "state-dir": tmp_path}
    with net["other"].inside():
        router = Router(run, name, flags)
        router.wait_healthy("1/1")
    with net["client"].inside():
        body = b'{"model":"m"}'
        assert ask(router.url, "POST", "/v1/chat/completions", (), body).status == 200


def test_nothing_is_left_even_when_the_test_fails() -> None:
    def fail() -> None:
        with network("a", "b"):
            assert ours(), "they are there"
            raise ValueError("the test fails")

    with pytest.raises(ValueError, match="the test fails"):
        fail()
    assert ours() == []


def test_what_a_killed_run_left_behind_is_removed() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    left = f"rig-{gone.pid}-0-x"
    with network("a"):
        subprocess.run(["ip", "netns", "add", left], check=True)
        with network("b"):
            assert not (NAMED / left).exists()
            assert len(ours()) == 4


def ours() -> list[Path]:
    return list(NAMED.glob(f"rig-{os.getpid()}-*"))


def test_a_rule_that_cannot_be_is_an_error(net: Hosts) -> None:
    with pytest.raises(OSError, match="nft"):
        net["client"].drop(70_000)
