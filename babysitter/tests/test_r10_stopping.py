"""R10: stopping an engine loses nothing."""

import signal
import socket
import threading
import time

import pytest

from rig.held_request import HeldRequest
from rig.processes import free_port, wait_until


def test_r10_the_order_of_stopping(serving, registry, router) -> None:
    held = HeldRequest(serving.port)
    serving.program.signal(signal.SIGTERM)
    wait_until(lambda: registry.status(serving.engine_name) == "draining", what="announced")
    status, health = serving.get("/health")
    assert (status, health["state"], health["status"]) == (503, "draining", "draining")
    asked = len(router.calls)
    wait_until(lambda: len(router.calls) >= asked + 3, what="routers are asked")
    router.sending.clear()
    time_of_release = time.monotonic()
    serving.switch("release")
    held.wait()
    assert serving.program.wait() == 0
    assert held.body == b"halfdone"
    (put,) = registry.seen("PUT", f"/services/{serving.engine_name}")
    (delete,) = registry.seen("DELETE", f"/services/{serving.engine_name}")
    (sigterm,) = serving.journal("sigterm")
    assert put.body["status"] == "draining"
    order = [put.time, time_of_release, held.finished, sigterm["time"], delete.time]
    assert order == sorted(order)
    assert registry.services == {}


def test_r10_an_engine_that_a_router_still_sends_to_is_not_stopped(serving, router) -> None:
    serving.program.signal(signal.SIGTERM)
    wait_until(lambda: len(router.calls) >= 5, what="router asked five times")
    assert serving.journal("sigterm") == []
    router.sending.clear()
    assert serving.program.wait() == 0
    assert len(serving.journal("sigterm")) == 1


def test_r10_an_open_connection_is_waited_for_only_so_long(babysit) -> None:
    limits = {"drain_settle": 3600, "drain_timeout": 0.3}  # no registry and no router knows it
    babysat = babysit(babysitter=limits)
    babysat.program.wait_for_line("engine state=ready")
    with socket.create_connection(("127.0.0.1", babysat.port)):
        assert babysat.program.stop() == 0
    assert "drain time over connections=1" in babysat.program.output


def test_a_second_signal_stops_at_once(serving) -> None:
    held = HeldRequest(serving.port)
    serving.program.signal(signal.SIGTERM)
    serving.wait_for_state("draining")

    def ended() -> bool:
        serving.program.signal(signal.SIGTERM)
        return serving.program.process.poll() is not None

    wait_until(ended, 10, "end after the second signal")
    assert serving.program.process.returncode == 0
    assert serving.journal("sigterm") == []
    assert held.body == b"half"


def test_an_engine_that_nobody_uses_is_stopped_without_waiting(babysit) -> None:
    babysat = babysit(babysitter={"drain_settle": 3600})
    babysat.program.wait_for_line("engine state=ready")
    assert babysat.program.stop() == 0


def test_a_router_that_is_not_there_is_not_waited_for(babysit, registry) -> None:
    nobody = f"http://localhost:{free_port()}"
    limits = {"drain_settle": 3600}
    babysat = babysit(registry_url=registry.url, router_url=nobody, babysitter=limits)
    wait_until(lambda: registry.status(babysat.engine_name) == "running")
    assert babysat.program.stop() == 0


def test_a_router_whose_answer_makes_no_sense_keeps_nobody_from_stopping(
    babysit, registry, router, monkeypatch
) -> None:
    babysat = babysit(registry_url=registry.url, router_url=router.url)
    wait_until(lambda: registry.status(babysat.engine_name) == "running")
    monkeypatch.setattr(router, "answer", lambda *_: (200, b"[" * 100_000))
    assert babysat.program.stop() == 0
    assert len(babysat.journal("sigterm")) == 1


def test_an_engine_that_is_still_loading_is_stopped_without_waiting(babysit, registry) -> None:
    limits = {"drain_settle": 3600}
    babysat = babysit(registry_url=registry.url, switches={"loading": ""}, babysitter=limits)
    wait_until(lambda: babysat.journal("refused"), what="first look")
    assert babysat.program.stop() == 0
    assert registry.services == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_stop_as_well(babysit, registry, number: signal.Signals) -> None:
    babysat = babysit(registry_url=registry.url)
    babysat.wait_for_state("ready")
    babysat.program.signal(number)
    assert babysat.program.wait() == 0
    assert registry.services == {}


def answer_first_goodbyes(registry, monkeypatch, status: int, count: int) -> None:
    """The registry answers so many DELETEs with `status`, and does nothing."""
    answer, left = registry.answer, [None] * count

    def refuse(method: str, path: str, body: dict) -> tuple[int, object]:
        if method == "DELETE" and left:
            left.pop()
            return status, {"error": "not now"}
        return answer(method, path, body)

    monkeypatch.setattr(registry, "answer", refuse)


@pytest.mark.parametrize("status", [503, 429])
def test_a_goodbye_that_the_registry_cannot_take_now_is_said_again(
    babysit, registry, monkeypatch, status: int
) -> None:
    babysat = babysit(registry_url=registry.url)
    wait_until(lambda: registry.status(babysat.engine_name) == "running")
    answer_first_goodbyes(registry, monkeypatch, status, count=3)
    assert babysat.program.stop() == 0
    assert registry.services == {}


@pytest.mark.parametrize("status", [401, 403, 409])
def test_a_goodbye_that_is_not_ours_to_say_is_said_once_and_reported(
    babysit, registry, monkeypatch, status: int
) -> None:
    babysat = babysit(registry_url=registry.url)
    wait_until(lambda: registry.status(babysat.engine_name) == "running")
    answer_first_goodbyes(registry, monkeypatch, status, count=1000)
    assert babysat.program.stop() == 0
    for name in (babysat.name, babysat.engine_name):
        babysat.program.wait_for_line(f"not unregistered name={name} reason='not now'")
        assert len(registry.seen("DELETE", f"/services/{name}")) == 1
    assert " unregistered " not in babysat.program.output.replace("not unregistered", "")


def test_when_one_registry_hangs_the_next_one_hears_the_goodbye(
    babysit, registry, monkeypatch
) -> None:
    second, released = type(registry)(), threading.Event()
    second.services = registry.services  # one store behind both
    try:
        babysat = babysit(registry_url=f"{registry.url},{second.url}")
        wait_until(lambda: registry.status(babysat.engine_name) == "running")
        monkeypatch.setattr(registry, "answer", lambda *_: (released.wait(60), (503, {}))[1])
        assert babysat.program.stop() == 0
        assert second.services == {}
    finally:
        released.set()
        second.close()
