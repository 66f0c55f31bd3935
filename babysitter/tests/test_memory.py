"""The memory of the last engine is free before the next one starts, where a tool can tell."""

import asyncio
import os
import signal
import stat
from pathlib import Path

import pytest

from infinilm_babysitter import proctree
from infinilm_babysitter.memory import DeviceMemory
from rig.processes import wait_until

NVIDIA = """\
#!/bin/sh
echo "$@" >> "$FOLDER/calls"
[ -e "$FOLDER/hang" ] && exec sleep 3600
[ -e "$FOLDER/fail" ] && exit 9
case "$1" in
  --query-compute-apps=*) cat "$FOLDER/pids" ;;
  *) echo "0, GPU-abc, $(cat "$FOLDER/used")" ;;
esac
"""


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """A folder that says what the `nvidia-smi` on the PATH of the babysitter prints."""
    folder = tmp_path / "tool"
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(NVIDIA)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "pids").write_text("")
    (folder / "used").write_text("100")
    return folder


@pytest.fixture
def start(babysit, tool: Path):
    def start(limit: float, *, loading: bool = False):
        env = {"PATH": f"{tool}:{os.environ['PATH']}", "FOLDER": str(tool)}
        switches = {"loading": ""} if loading else {}
        return babysit(env=env, switches=switches, babysitter={"gpu_free_timeout": limit})

    return start


def calls(tool: Path) -> int:
    file = tool / "calls"
    return file.read_text().count("--query-gpu") if file.exists() else 0


def kill_engine_that_holds_memory(babysat, tool) -> None:
    """Once it was looked at while it ran; it stays listed, as if the device had kept it."""
    babysat.wait_for_state("ready")
    wait_until(lambda: calls(tool) >= 2, what="looked at the running engine")
    (tool / "pids").write_text(f"{babysat.engine_pid()}\n")
    kill_engine(babysat)


def wait_for_next_look(tool: Path) -> None:
    seen = calls(tool)
    wait_until(lambda: calls(tool) > seen + 1, what="the tool is asked again")


def kill_engine(babysat) -> None:
    os.kill(babysat.engine_pid(), signal.SIGKILL)
    wait_until(lambda: babysat.get("/health")[1]["state"] == "backoff", what="end seen")


def test_no_new_engine_starts_while_the_tool_lists_a_process_of_the_last_one(start, tool) -> None:
    babysat = start(3600)
    babysat.wait_for_state("ready")
    wait_until(lambda: calls(tool) >= 2, what="looked at the running engine")
    pid = babysat.engine_pid()
    (tool / "pids").write_text(f"{os.getpid()}\n{pid}\n")
    kill_engine(babysat)
    wait_for_next_look(tool)
    assert len(babysat.journal("start")) == 1
    detail = babysat.get("/health")[1]["detail"]
    assert detail == (
        f"waits for device memory: nvidia-smi: memory of ended processes is held: pids {pid}"
    )
    (tool / "pids").write_text(f"{os.getpid()}\n")  # a neighbour's is no reason to wait
    wait_until(lambda: len(babysat.journal("start")) == 2, what="second start")


def test_where_processes_are_not_listed_the_memory_of_the_devices_is_waited_for(
    start, tool
) -> None:
    babysat = start(3600, loading=True)
    wait_until(lambda: babysat.journal("start"), what="looked before, and started")
    (tool / "used").write_text("40000")
    babysat.switch("loading", on=False)
    babysat.wait_for_state("ready")
    wait_until(lambda: calls(tool) >= 2, what="looked at the running engine")
    kill_engine(babysat)
    wait_for_next_look(tool)
    assert len(babysat.journal("start")) == 1
    assert "more memory is in use than before" in babysat.get("/health")[1]["detail"]
    (tool / "used").write_text("120")
    wait_until(lambda: len(babysat.journal("start")) == 2, what="second start")


def test_memory_that_never_gets_free_is_waited_for_only_so_long(start, tool) -> None:
    babysat = start(0.3)
    kill_engine_that_holds_memory(babysat, tool)
    wait_until(lambda: len(babysat.journal("start")) == 2, what="second start")
    babysat.program.wait_for_line("starting although device memory is not free")


def test_a_stop_while_memory_is_waited_for_is_obeyed(start, tool) -> None:
    babysat = start(3600)
    kill_engine_that_holds_memory(babysat, tool)
    wait_for_next_look(tool)
    assert babysat.program.stop() == 0


def test_the_next_babysitter_waits_for_the_memory_of_the_last_ones_engine(start, tool) -> None:
    babysat = start(3600)
    babysat.wait_for_state("ready")
    pid = babysat.engine_pid()
    note = babysat.folder.parent / "logs/engine_test.state.json"
    wait_until(lambda: f"[{pid}," in note.read_text(), what="engine noted")
    babysat.program.kill()
    (tool / "pids").write_text(f"{pid}\n")
    start(3600)
    wait_for_next_look(tool)
    assert len(babysat.journal("start")) == 1
    (tool / "pids").write_text("")
    wait_until(lambda: len(babysat.journal("start")) == 2, what="second start")


def test_a_tool_that_fails_is_as_good_as_none(start, tool) -> None:
    (tool / "fail").write_text("")
    babysat = start(3600)
    babysat.wait_for_state("ready")
    kill_engine(babysat)
    wait_until(lambda: len(babysat.journal("start")) == 2, what="second start")
    assert babysat.program.output.count("device tool fails program=nvidia-smi") == 1


def test_a_tool_that_hangs_keeps_nothing_from_being_answered(start, tool) -> None:
    (tool / "hang").write_text("")
    babysat = start(1)
    babysat.program.wait_listening()
    wait_until((tool / "calls").exists, what="tool asked")
    assert babysat.get("/health")[0] == 503
    assert babysat.journal("start") == []
    babysat.program.wait_for_line("device tool fails program=nvidia-smi reason='no answer within")
    babysat.wait_for_state("ready")
    assert babysat.program.stop() == 0


def test_without_any_tool_one_line_says_so(babysit, tmp_path) -> None:
    babysat = babysit(env={"PATH": str(tmp_path)})
    babysat.wait_for_state("ready")
    os.kill(babysat.engine_pid(), signal.SIGKILL)
    wait_until(lambda: len(babysat.journal("start")) == 2, what="second start")
    assert babysat.program.output.count("device memory is not watched") == 1


def test_a_limit_of_zero_means_not_to_look(start, tool) -> None:
    babysat = start(0)
    babysat.wait_for_state("ready")
    kill_engine(babysat)
    wait_until(lambda: len(babysat.journal("start")) == 2, what="second start")
    assert calls(tool) == 0


def test_an_engine_whose_processes_cannot_be_listed_has_no_account(
    tool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("too many open files")

    monkeypatch.setenv("PATH", str(tool), prepend=os.pathsep)
    monkeypatch.setenv("FOLDER", str(tool))
    monkeypatch.setattr(proctree, "snapshot", fail)
    asyncio.run(DeviceMemory(lambda: os.environ, 5).note_running(os.getpid()))
    assert not (tool / "calls").exists()
