"""R9: a port that can not be taken over is served as before, and the error says what to do."""

import os
from pathlib import Path
from typing import Any

import pytest

from rig.fake_engine import FakeEngine
from rig.flows import closed_loop, static
from rig.handover import as_nobody, fails, handover_flags, services_file, speak, successor
from rig.load_client import chat_call
from rig.processes import Programs, free_port
from rig.routers import SLOW, StartRouter


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, Any]:
    return handover_flags(tmp_path)


def test_a_successor_that_is_to_listen_elsewhere_says_so_and_leaves_all_as_it_is(
    start: StartRouter, run: Programs, engine: FakeEngine, flags: dict[str, Any]
) -> None:
    old = start(static(engine), flags=flags)
    said = fails(run, old.name, {**flags, "take-over": True, "router-port": free_port()})
    assert f"the router that runs listens on 127.0.0.1:{flags['router-port']}" in said
    assert closed_loop(old.url, [chat_call()], 1)[0].kind == "ok"


def test_nobody_to_take_over_from_is_an_error(
    start: StartRouter, run: Programs, engine: FakeEngine, flags: dict[str, Any]
) -> None:
    router = start(static(engine), flags={"router-port": flags["router-port"]})
    said = fails(run, router.name, {**flags, "take-over": True})
    assert f"no router gives its port at {flags['handover']} (No such file or directory)" in said
    assert "stop it first, and start this one without --take-over" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request", "it is no router, or one of another version"),
        (b"1L.", "it gave no sockets"),
        pytest.param(None, "no answer in 5 s, another router may be taking over", marks=SLOW),
    ],
)
def test_what_is_no_router_is_not_taken_for_one(
    start: StartRouter,
    run: Programs,
    flags: dict[str, Any],
    words: bytes | None,
    reason: str,
) -> None:
    with speak(flags["handover"], words):
        said = fails(run, start.name, {**flags, "take-over": True})
    assert f"no router gives its port at {flags['handover']} ({reason})" in said


other_user = pytest.mark.skipif(os.geteuid() != 0, reason="root can be another user")


@other_user
def test_a_process_of_another_user_is_not_given_the_port(
    start: StartRouter, engine: FakeEngine, flags: dict[str, Any]
) -> None:
    router = start(static(engine), flags=flags)
    flags["handover"].chmod(0o666)  # as if somebody had opened what is closed
    flags["handover"].parent.chmod(0o777)
    end = as_nobody(
        flags["handover"],
        "s = socket.socket(socket.AF_UNIX); s.settimeout(10); print('begun', flush=True)",
        "s.connect('router.handover'); print(s.recv(100))",
    )
    assert end() == "b''\n"
    router.program.wait_for_line("not given to a process of another user uid=65534")
    assert closed_loop(router.url, [chat_call()], 1)[0].kind == "ok"


@other_user
def test_a_port_of_another_users_process_is_not_taken_over(
    start: StartRouter, run: Programs, flags: dict[str, Any]
) -> None:
    end = as_nobody(
        flags["handover"],
        "s = socket.socket(socket.AF_UNIX); s.bind('router.handover')",
        "s.listen(); print('begun', flush=True); p, _ = s.accept(); p.send(b'1'); p.recv(1)",
    )
    said = fails(run, start.name, {**flags, "take-over": True})
    end()
    assert f"it runs as user 65534, this one as {os.geteuid()}" in said


def test_a_second_start_on_a_busy_port_fails_and_does_not_touch_the_door(
    start: StartRouter, run: Programs, engine: FakeEngine, flags: dict[str, Any]
) -> None:
    router = start(static(engine), flags=flags)
    assert "can't listen" in fails(run, router.name, flags)
    said = fails(run, router.name, {**flags, "router-port": 0})
    assert f"another router gives its port at {flags['handover']}" in said
    successor(router, run, {**flags, "static-services": services_file(router)})
    assert router.program.wait(20) == 0


def test_a_door_that_can_not_be_opened_is_told_at_the_start(
    start: StartRouter, run: Programs, engine: FakeEngine, tmp_path: Path
) -> None:
    router = start(static(engine))
    nowhere = tmp_path / "none" / "door"
    said = fails(run, router.name, {"router-port": 0, "handover": nowhere})
    assert f"can't offer the port at {nowhere}: No such file or directory" in said
    assert "choose another --handover, or none" in said
    (file := tmp_path / "a file").write_text("precious")
    said = fails(run, router.name, {"router-port": 0, "handover": file})
    assert f"can't offer the port at {file}: Address already in use" in said
    assert file.read_text() == "precious"


def test_the_door_of_a_router_that_was_killed_is_in_nobodys_way(
    start: StartRouter, engine: FakeEngine, flags: dict[str, Any]
) -> None:
    start(static(engine), flags=flags).program.kill()
    assert flags["handover"].is_socket()
    assert flags["handover"].stat().st_mode & 0o777 == 0o600
    router = start(static(engine), flags=flags)
    assert router.program.stop() == 0
    assert not flags["handover"].exists()
