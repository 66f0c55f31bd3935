"""launch_router.sh builds the Rust router; a stand-in takes the place of cargo."""

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest

from rig.bare_machine import INSTALL, add_cargo, failing_build, launched
from rig.processes import free_port, wait_until


def test_auto_builds_with_cargo_where_it_stands(bare):
    add_cargo(bare)
    program = bare.root / "router-rust/target/release/infini-router"
    line = launched(bare, BUILD=INSTALL)
    assert line == f"rust (built with cargo 1.99.0: {program})"
    assert "Compiling stand-in" in (bare.logs / "router_build.log").read_text()
    assert "--release --locked" in (bare.logs / "router_build.log").read_text()


def test_auto_builds_where_cargo_is_told_to(bare, tmp_path):
    add_cargo(bare)
    line = launched(bare, BUILD=INSTALL, CARGO_TARGET_DIR=str(tmp_path / "other place"))
    assert line.endswith(f"{tmp_path}/other place/release/infini-router)")


def test_a_target_that_is_set_for_cargo_does_not_move_the_program(bare):
    add_cargo(bare)
    line = launched(bare, BUILD=INSTALL, CARGO_BUILD_TARGET="x86_64-unknown-linux-musl")
    assert line.startswith("rust (built with cargo"), line


def test_a_build_that_fails_shows_the_end_of_its_log(bare):
    failing_build(bare)
    code, output = bare.script("launch_router.sh", ROUTER_IMPLEMENTATION="rust")
    assert code == 69
    assert "    error[E0425]: cannot find it\n" in output
    assert "the Rust router is asked for (ROUTER_IMPLEMENTATION)" in output


def cargo_that_waits(tree) -> Path:
    """A build that goes on until the file appears that this returns; it writes its pid to a log."""
    add_cargo(tree)
    go = tree.root / "go"
    tree.env["BUILD"] = f"""echo $$ >'{tree.root}/cargo.pid'
        while [ ! -e '{go}' ]; do sleep 0.1; done
        {INSTALL}"""
    return go


def test_a_first_build_shows_progress(bare):
    go = cargo_that_waits(bare)
    process = bare.popen(bare.root / "launch_router.sh")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Compiling" in line:
            go.touch()
    assert process.wait(30) == 0, lines
    assert re.match(r"router: building the Rust router, [45] s: +Compiling stand-in", lines[0])
    assert lines[1].startswith("router: using rust (built with cargo 1.99.0: ")


def pid_of_cargo(tree) -> int:
    """The build is under way then."""
    pid_file = tree.root / "cargo.pid"
    wait_until(lambda: pid_file.exists() and pid_file.read_text(), 20, "the build began")
    return int(pid_file.read_text())


def test_a_router_that_came_up_during_a_build_is_left_as_it_is(bare):
    go = cargo_that_waits(bare)
    building = bare.popen(bare.root / "launch_router.sh")
    pid_of_cargo(bare)
    code, output = bare.script("launch_router.sh", "--implementation=python")
    assert code == 0, output
    pid = bare.pid("router")
    go.touch()
    output, _ = building.communicate(timeout=30)
    assert building.returncode == 0, output
    assert f"router: already running (pid {pid}, python)" in output
    assert (bare.pid("router"), bare.pid_files()) == (pid, ["router.pid"])


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "XZ"
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("script", ["launch_router.sh", "launch_all.sh"])
def test_a_build_ends_with_the_launch_that_is_interrupted(bare, script, number):
    cargo_that_waits(bare)
    bare.env["REGISTRY_PORT"] = str(free_port())
    process = bare.popen("setsid", bare.root / script)
    cargo = pid_of_cargo(bare)
    os.killpg(process.pid, number)
    assert process.wait(20) != 0
    wait_until(lambda: not is_alive(cargo), 10, "the build ended")
    assert bare.pid_files() == []


@pytest.mark.parametrize("script", ["launch_router.sh", "launch_all.sh"])
def test_ctrl_c_at_a_terminal_ends_a_build(bare, script):
    """The terminal tells only the group of processes in its foreground."""
    go = cargo_that_waits(bare)
    process, terminal = bare.at_terminal(script, REGISTRY_PORT=str(free_port()))
    try:
        cargo = pid_of_cargo(bare)
        os.write(terminal, b"\x03")
        assert process.wait(20) != 0
        wait_until(lambda: not is_alive(cargo), 10, "the build ended")
        assert bare.pid_files() == []
    finally:
        go.touch()
        os.close(terminal)
