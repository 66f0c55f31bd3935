"""A stalled engine is told from a busy one and from a dead one, and what follows from it."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from rig.processes import wait_until

FAST_STALL = {"stalled_after": 1.5, "probe_timeout": 0.3}


def page(running: int, tokens: int) -> str:
    return f"vllm:num_requests_running {running}\nvllm:generation_tokens_total {tokens}\n"


def liveness(babysat) -> str | None:
    return babysat.get("/health")[1]["liveness"]


@contextlib.contextmanager
def client(babysat) -> Iterator[None]:
    """Somebody who waits for an answer."""
    with socket.create_connection(("127.0.0.1", babysat.port)):
        yield


@pytest.fixture
def serving(babysit, registry):
    """A babysitter whose engine has metrics and nothing to do."""
    babysat = babysit(
        registry_url=registry.url, babysitter=FAST_STALL, switches={"metrics": page(0, 1)}
    )
    wait_until(lambda: registry.status(babysat.engine_name) == "running", what="registered")
    wait_until(lambda: babysat.get("/info")[1]["engine"]["metrics"] == "vllm", what="metrics read")
    return babysat


def stall(babysat) -> None:
    babysat.switch("metrics", text=page(2, 1))
    wait_until(lambda: liveness(babysat) == "stalled", what="stalled")


def test_a_stalled_engine_is_told_and_comes_back_when_tokens_flow(serving, registry) -> None:
    assert liveness(serving) == "ok"
    with client(serving):
        stall(serving)
        status, health = serving.get("/health")
        assert (status, health["status"], health["state"]) == (503, "stalled", "ready")
        assert health["detail"] == "no token, with 2 requests to do, for 1.5 s"
        wait_until(lambda: registry.status(serving.engine_name) == "stalled", what="told")
        beats = len(registry.seen("POST", f"/services/{serving.engine_name}/heartbeat"))
        wait_until(
            lambda: (
                len(registry.seen("POST", f"/services/{serving.engine_name}/heartbeat")) > beats + 2
            ),
            what="heartbeats go on",
        )
        beat = registry.seen("POST", f"/services/{serving.engine_name}/heartbeat")[-1]
        assert beat.body["status"] == "stalled"

        serving.switch("metrics", text=page(2, 2))
        wait_until(lambda: serving.get("/health")[0] == 200, what="healthy again")
        wait_until(lambda: registry.status(serving.engine_name) == "running", what="told again")
    assert len(serving.journal("start")) == 1, "a stall alone restarts nothing"
    assert serving.program.output.count("engine stalled") == 1


def test_a_stalled_engine_is_restarted_when_that_is_asked_for(babysit, registry) -> None:
    babysat = babysit(
        registry_url=registry.url,
        babysitter=FAST_STALL | {"restart_when_stalled": True},
        switches={"metrics": page(2, 1)},
    )
    babysat.wait_for_state("ready")
    with client(babysat):
        babysat.program.wait_for_line("engine is ended reason='stalled: no token, with 2 requests")
    wait_until(lambda: len(babysat.journal("start")) == 2, what="second start")
    babysat.wait_for_state("ready")


def test_a_stalled_engine_without_clients_is_asked_for_a_token(serving) -> None:
    with client(serving):
        stall(serving)
        serving.switch("metrics.after", text=page(0, 2))
        wait_until(lambda: liveness(serving) == "ok", what="back after the token")
    asked = serving.journal("asked")
    assert {(each["path"], each["body"]["model"]) for each in asked} == {("/v1/completions", "m")}
    assert {each["body"]["max_tokens"] for each in asked} == {1}


def test_an_engine_that_is_idle_or_at_work_is_not_asked_for_tokens(babysit) -> None:
    babysat = babysit(babysitter={"stalled_after": 3600}, switches={"metrics": page(0, 1)})
    wait_until(lambda: len(babysat.journal("metrics")) > 2, what="looked at while idle")
    with client(babysat):
        babysat.switch("metrics", text=page(1, 1))
        wait_until(lambda: liveness(babysat) == "busy", what="busy")
        looks = len(babysat.journal("metrics"))
        wait_until(lambda: len(babysat.journal("metrics")) > looks + 2, what="looked at again")
    assert babysat.journal("asked") == []


def test_an_engine_that_does_not_answer_is_busy_and_in_time_stalled(serving) -> None:
    serving.switch("mute")
    serving.program.wait_for_line("engine liveness=busy was=ok")
    serving.program.wait_for_line("engine liveness=stalled was=busy")
    wait_until(lambda: serving.get("/health")[1]["detail"] == "no answer for 1.5 s", what="told")
    serving.switch("mute", on=False)
    wait_until(lambda: liveness(serving) == "ok", what="ok again")
    assert len(serving.journal("start")) == 1


def test_a_stopped_process_is_stalled_and_not_dead(serving) -> None:
    engine = serving.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    wait_until(lambda: liveness(serving) == "stalled", what="stalled")
    os.kill(engine, signal.SIGCONT)
    wait_until(lambda: liveness(serving) == "ok", what="ok again")


def test_an_engine_without_metrics_that_does_not_answer_is_only_busy(babysit) -> None:
    babysat = babysit(babysitter={"stalled_after": 0.1, "probe_timeout": 0.05})
    babysat.wait_for_state("ready")
    babysat.switch("mute")
    wait_until(lambda: liveness(babysat) == "busy", what="busy")
    assert babysat.get("/health")[0] == 200
    babysat.switch("mute", on=False)
    wait_until(lambda: liveness(babysat) == "ok", what="ok")
    assert "stalled" not in babysat.program.output
    assert len(babysat.journal("start")) == 1


def test_a_closed_port_is_dead(babysit, registry) -> None:
    babysat = babysit(registry_url=registry.url, babysitter={"unhealthy_after": 60})
    babysat.wait_for_state("ready")
    babysat.switch("closed")
    wait_until(lambda: liveness(babysat) == "dead", what="dead")
    status, health = babysat.get("/health")
    assert (status, health["status"], health["state"]) == (503, "unhealthy", "ready")
    babysat.switch("closed", on=False)
    wait_until(lambda: babysat.get("/health")[0] == 200, what="open again")
    assert len(babysat.journal("start")) == 1


def test_liveness_of_an_engine_that_is_not_there(babysit) -> None:
    babysat = babysit(switches={"loading": ""})
    babysat.program.wait_listening()
    wait_until(lambda: babysat.journal("refused"), what="first look")
    assert liveness(babysat) is None
    babysat.switch("exit", text="3")
    os.kill(babysat.engine_pid(), signal.SIGKILL)
    wait_until(lambda: liveness(babysat) == "dead", what="dead")
