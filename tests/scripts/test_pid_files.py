"""Pid files and readiness of services. The library is tried with a stand-in service."""

from pathlib import Path

import pytest

BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
LAUNCH = 'launch registry 20 "${STAND_IN[@]}"'


def start_time(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[19]


def test_a_stopped_service_can_be_started_again_in_the_same_minute(tree):
    assert tree.library(f"{LAUNCH}; stop_service registry; {LAUNCH}")[0] == 0
    assert tree.script("stop_registry.sh")[0] == 0


def test_the_first_line_of_a_pid_file_is_the_bare_pid(tree):
    assert tree.library(LAUNCH)[0] == 0
    lines = (tree.logs / "registry.pid").read_text().splitlines()
    assert lines[0].isdigit()
    assert lines[1:3] == [f"start_time={start_time(int(lines[0]))}", f"boot_id={BOOT_ID}"]
    assert all("=" in line for line in lines[1:])  # so that `kill $(cat FILE)` hits nobody else


def test_a_service_with_a_long_log_is_still_recognised_as_ready(tree):
    assert tree.library(LAUNCH)[0] == 0
    with next(tree.logs.glob("registry_*.log")).open("a") as log:
        log.writelines("one of many lines\n" for _ in range(200_000))
    code, output = tree.library(LAUNCH)
    assert code == 0, output
    assert "already running" in output


def test_a_service_that_loads_shows_its_progress(tree):
    code, output = tree.library(
        'SAY_EVERY=1; launch registry 20 "${STAND_IN[@]}" --ready-after 2.5'
    )
    assert code == 0
    assert "registry: loading, 1 s: listening on http://127.0.0.1:" in output
    assert "registry: ready at http://127.0.0.1:" in output


def test_a_service_that_ends_is_reported_with_its_log_and_exit_code(tree):
    code, output = tree.library('launch registry 20 "${STAND_IN[@]}" --exit 64')
    assert code == 64
    assert "registry: ended with exit code 64 before it was ready" in output
    assert "the reason why it ended" in output
    assert tree.pid_files() == []


def test_a_service_that_is_not_ready_in_time_is_reported_and_kept(tree):
    code, output = tree.library('launch registry 1 "${STAND_IN[@]}" --ready-after 100')
    assert code == 1
    assert "not ready after 1 s and still loading" in output
    assert tree.script("stop_registry.sh")[0] == 0


def test_readiness_works_without_curl(tree):
    code, output = tree.library(
        'command() { [[ $* != "-v curl" ]] && builtin command "$@"; }\n'
        f"ensure_python; curl() {{ say 'curl was used'; }}; {LAUNCH}"
    )
    assert (code, "curl was used" in output) == (0, False), output


def test_the_pid_file_is_there_before_the_service_runs(tree):
    """So nothing that interrupts a launch leaves a service that no pid file names."""
    tell = """bash -c 'cat "$0"; exec "$@"' "$LOG_DIR/registry.pid" "${STAND_IN[@]}" """
    slow = 'mv() { sleep 0.5; command mv "$@"; }'  # the file comes late
    code, output = tree.library(f"{slow}; launch registry 20 {tell}")
    assert code == 0, output
    log = next(tree.logs.glob("registry_*.log")).read_text()
    assert log.splitlines()[:2] == [
        str(tree.pid("registry")),
        f"start_time={start_time(tree.pid('registry'))}",
    ]


def test_where_no_pid_file_can_be_written_nothing_is_started(tree, processes_of):
    tree.logs.mkdir()
    (tree.logs / ".registry.new").symlink_to("/dev/full")  # as on a full disk
    code, output = tree.library(LAUNCH)
    assert code == 74
    assert f"registry: not started: {tree.logs}/registry.pid cannot be written" in output
    assert "No space left on device" in output
    assert (tree.pid_files(), processes_of(tree)) == ([], [])
    code, output = tree.library(LAUNCH)  # with room again
    assert code == 0, output


def forget_log(log: Path) -> None:
    log.unlink()


def truncate_log(log: Path) -> None:
    log.write_text("")


@pytest.mark.parametrize("lose", [forget_log, truncate_log])
def test_a_service_whose_log_is_lost_is_still_recognised_as_ready(tree, lose):
    assert tree.library(LAUNCH)[0] == 0
    lose(next(tree.logs.glob("registry_*.log")))
    code, output = tree.script("deploy_services.sh", "status")
    assert code == 0, output
    assert "ready at http://127.0.0.1:" in output
    code, output = tree.library(LAUNCH.replace("20", "1"))
    assert code == 0, output
    assert "already running" in output


def test_the_status_of_a_service_that_said_no_address_yet_is_that_it_starts(tree):
    assert tree.library(LAUNCH)[0] == 0
    mute = "launch router 0 sleep 1000"
    assert "router: not ready after 0 s and still starting" in tree.library(mute)[1]
    for name in ("registry", "none"):  # after another's answer, and as the first
        code, output = tree.script("deploy_services.sh", "status")
        assert code == 3
        assert "running, not ready: starting (pid " in output, name
        tree.script("stop_registry.sh")
