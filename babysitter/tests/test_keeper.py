"""The keeper, as the babysitter talks to it, and the folder in which it starts the engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rig.processes import ROOT, wait_until


@pytest.mark.parametrize(
    ("command", "code"), [(b"stop 60\n", -15), (b"kill\n", -9)], ids=["stop", "kill"]
)
def test_a_command_that_arrives_with_the_launch_is_obeyed(command: bytes, code: int) -> None:
    launch = {"argv": ["sleep", "600"], "env": dict(os.environ), "cwd": "/"}
    with subprocess.Popen(
        [sys.executable, "-m", "infinilm_babysitter.keeper"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT / "babysitter",
        bufsize=0,
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        try:
            keeper.stdin.write(json.dumps(launch).encode() + b"\n" + command)
            assert keeper.wait(20) == 0
        finally:
            keeper.stdin.close()  # ends all if it has not ended
            keeper.wait()
        *_, last = map(json.loads, keeper.stdout)
    assert last == {"event": "gone", "code": code}


@pytest.mark.parametrize("work_dir", [None, "below", "{here}/below"])
def test_an_engine_runs_in_its_work_dir_below_the_folder_of_the_babysitter(
    babysit, tmp_path: Path, work_dir: str | None
) -> None:
    folder = tmp_path / "below" if work_dir else tmp_path
    folder.mkdir(exist_ok=True)
    script = folder / "engine.py"  # reached by a path that means nothing elsewhere
    script.write_text("import os; print('runs in', os.getcwd(), flush=True)")
    backend = {"type": "command", "command": sys.executable, "args": ["./engine.py"]}
    if work_dir:
        backend["work_dir"] = work_dir.format(here=tmp_path)
    babysat = babysit(backend=backend, cwd=tmp_path)
    wait_until(lambda: f"runs in {folder}\n" in log_of(tmp_path), what="the engine has run")
    assert babysat.program.stop() == 0


def log_of(folder: Path) -> str:
    file = folder / "logs/engine_test.log"
    return file.read_text() if file.exists() else ""
