"""R26: stop scripts never kill a stranger. The library is tried with a stand-in service."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.processes import ROOT, wait_until
from rig.routers import SLOW

BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
LAUNCH = 'launch registry 20 "${STAND_IN[@]}"'


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that no script started."""
    with subprocess.Popen(["sleep", "1000"]) as one:
        yield one
        assert one.poll() is None, "the stranger was killed"
        one.kill()


def start_time(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[19]


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_r26_a_pid_that_was_given_to_another_process_is_left_alone(tree, stranger):
    later = int(start_time(stranger.pid)) - 1
    tree.write("logs/registry.pid", f"{stranger.pid}\nstart_time={later}\nboot_id={BOOT_ID}\n")
    code, output = tree.script("stop_registry.sh")
    assert (code, tree.pid_files()) == (0, [])
    assert f"pid {stranger.pid} now belongs to another process" in output


def test_r26_a_pid_file_of_an_earlier_boot_kills_nobody(tree, stranger):
    tree.write(
        "logs/router.pid",
        f"{stranger.pid}\nstart_time={start_time(stranger.pid)}\nboot_id=an-earlier-boot\n",
    )
    code, output = tree.script("stop_all.sh")
    assert (code, tree.pid_files()) == (0, [])
    assert "left alone" in output


def test_r26_a_bare_pid_cannot_be_checked_so_stop_and_start_refuse(tree, stranger):
    tree.write("logs/registry.pid", f"{stranger.pid}\n")
    for code, output in (tree.script("stop_registry.sh"), tree.library(LAUNCH)):
        assert code == 1
        assert f"holds only the pid {stranger.pid}" in output
    assert tree.pid_files() == ["registry.pid"]


def test_r26_a_pid_file_with_anything_else_in_it_is_removed(tree):
    tree.write("logs/registry.pid", "no number\n")
    assert tree.script("stop_registry.sh") == (0, "registry: had ended\n")
    assert tree.pid_files() == []


def race(tree) -> None:
    """Two launches at once: one service runs, and both say so."""
    launches = [tree.popen("bash", "-c", tree.with_library(LAUNCH)) for _ in range(2)]
    outputs = [launch.communicate(timeout=30)[0] for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0], outputs
    pid = tree.pid("registry")
    assert sum(f"registry: already running (pid {pid})" in output for output in outputs) == 1
    assert all(f"(pid {pid}, log" in output for output in outputs)
    code, output = tree.script("stop_registry.sh")
    assert code == 0, output


@pytest.mark.parametrize("races", [5, pytest.param(50, marks=SLOW)])
def test_r26_b_of_two_launches_at_once_one_wins_and_one_says_why(tree, processes_of, races):
    for _ in range(races):
        race(tree)
        assert processes_of(tree) == []
    print(f"R26: {races} of {races} races of two launches had one winner and a loser that said so")


def test_r26_c_the_lock_is_not_inherited(tree):
    assert tree.library(LAUNCH)[0] == 0
    descriptors = Path(f"/proc/{tree.pid('registry')}/fd").iterdir()
    assert tree.logs not in {descriptor.readlink() for descriptor in descriptors}
    assert tree.run("flock", "--nonblock", tree.logs, "true") == (0, "")


def test_r26_d_stop_succeeds_only_when_the_whole_tree_is_gone(tree):
    assert tree.library('launch registry 20 "${STAND_IN[@]}" --child')[0] == 0
    log = next(tree.logs.glob("registry_*.log")).read_text()
    child = int(re.search(r"child (\d+)", log)[1])
    code, output = tree.script("stop_registry.sh", TREE_TIMEOUT="1")
    assert code == 1
    assert f"its process {child} (sleep 1000 ) still runs" in output
    code, output = tree.script(
        "stop_registry.sh", TREE_TIMEOUT="1"
    )  # asked again, with its parent gone
    assert code == 1
    os.kill(child, signal.SIGKILL)
    assert tree.script("stop_registry.sh")[0] == 0
    assert tree.pid_files() == []


def test_r26_e_stop_waits_longer_than_the_drain(tree):
    code, output = tree.library('echo "$STOP_TIMEOUT"')
    assert int(output) > 120
    assert tree.library('launch registry 20 "${STAND_IN[@]}" --drain 1.5')[0] == 0
    code, output = tree.script("stop_registry.sh")
    assert code == 0
    assert "killing" not in output
    assert "ended by itself" in next(tree.logs.glob("registry_*.log")).read_text()


def test_r26_e_what_does_not_drain_in_time_is_killed_alone(tree, stranger, processes_of):
    assert tree.library('launch registry 20 "${STAND_IN[@]}" --ignore-term')[0] == 0
    pid = tree.pid("registry")
    code, output = tree.script("stop_registry.sh", STOP_TIMEOUT="1")
    assert code == 0
    assert f"killing pid {pid}" in output
    assert processes_of(tree) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start another user's process")
def test_a_process_of_another_user_is_not_waited_for_and_the_reason_is_told(tree):
    as_nobody = ["setpriv", "--reuid", "65534", "--clear-groups", "sleep", "1000"]
    without_kill = ["setpriv", "--inh-caps", "-kill", "--bounding-set", "-kill"]
    with subprocess.Popen(as_nobody) as theirs:
        wait_until(lambda: b"sleep" in command_line(theirs.pid)[:6], what="exec")
        record = f"{theirs.pid}\nstart_time={start_time(theirs.pid)}\nboot_id={BOOT_ID}\n"
        tree.write("logs/registry.pid", record)
        code, output = tree.run(*without_kill, tree.root / "stop_registry.sh", timeout=20)
        assert theirs.poll() is None
        theirs.kill()
    assert code == 1
    assert "registry: not stopped: " in output
    assert "Operation not permitted" in output
    assert tree.pid_files() == ["registry.pid"]


def test_r26_f_nothing_is_killed_by_name(tree):
    for script in (*ROOT.glob("*.sh"), ROOT / ".ci/run"):
        found = re.search(r"\b(pkill|killall|pgrep|pidof|fuser|lsof)\b", script.read_text())
        assert found is None, f"{script.name}: {found}"
    engine = subprocess.Popen(["bash", "-c", "exec -a 'launch_server.py --port 8100' sleep 1000"])
    try:
        wait_until(lambda: b"8100" in command_line(engine.pid), what="exec")
        assert tree.script("stop_all.sh")[0] == 0
        assert engine.poll() is None
    finally:
        engine.kill()
        engine.wait()
