"""The keeper, as the babysitter talks to it."""

import json
import os
import subprocess
import sys

import pytest

from rig.processes import ROOT


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
