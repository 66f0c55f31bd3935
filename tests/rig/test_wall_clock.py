"""Programs believe the clock that a test sets; their monotonic clock is the real one."""

import os
import time
from pathlib import Path

import pytest

from rig.processes import Programs
from rig.wall_clock import WallClock

SCRIPT = """import sys, time
for line in open(sys.argv[1]):
    print("clocks", time.time(), time.monotonic(), line, flush=True)
"""


def test_a_running_program_sees_a_jump_and_an_unmoved_monotonic_clock(
    run: Programs, tmp_path: Path
) -> None:
    clock = WallClock(tmp_path)
    script = tmp_path / "clocks.py"
    script.write_text(SCRIPT)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program = run.python(script, pipe, env=clock.env)
    with pipe.open("w", buffering=1) as questions:
        for ahead in (0, 3600, -3600, 86_400):
            clock.set(ahead)
            questions.write(f"{ahead}\n")
            answer = program.wait_for_line(rf"clocks (\S+) (\S+) {ahead}$")
            assert float(answer[1]) == pytest.approx(clock.now(), abs=20)
            assert float(answer[2]) == pytest.approx(time.monotonic(), abs=20)
    assert program.wait() == 0
