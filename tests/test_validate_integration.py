"""The owner's integration check, run as users run it."""

import os
import re
import signal
from pathlib import Path

import pytest

from rig.processes import Programs, wait_until


def test_every_check_passes_on_this_machine(run: Programs) -> None:
    program = run.python("tests/validate_integration.py")
    assert program.wait(100) == 0, program.output
    program.wait_for_line("10 of 10 checks passed")


def test_it_joins_a_running_system_and_leaves_it_running(run: Programs) -> None:
    registry = run.python(
        "registry/service_registry.py", *("--host", "127.0.0.1", "--port", "0", "--store", "memory")
    ).wait_listening()
    router = run.python(
        "router-python/distributed_router.py",
        *("--host", "127.0.0.1", "--router-port", "0", "--registry-url", registry),
    ).wait_listening()
    program = run.python(
        "tests/validate_integration.py", "--registry", registry, "--router", router
    )
    assert program.wait(100) == 0, program.output
    assert all(each.process.poll() is None for each in run.started[:2])


@pytest.mark.slow
def test_without_cleanup_everything_stays_and_is_listed(run: Programs) -> None:
    program = run.python("tests/validate_integration.py", "--no-cleanup")
    code = program.wait(100)
    pids = [int(pid) for pid in re.findall(r"pid (\d+)", program.output)]
    try:
        assert code == 0, program.output
        assert len(pids) == 4
        assert all(_alive(pid) for pid in pids)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not any(map(_alive, pids)), 30, "everything stopped")


def test_a_registry_that_is_not_there_fails_the_check(run: Programs) -> None:
    program = run.python("tests/validate_integration.py", "--registry", "http://127.0.0.1:1")
    assert program.wait(60) == 1
    program.wait_for_line("FAIL  registry")


def test_wrong_flags_are_a_usage_error(run: Programs) -> None:
    assert run.python("tests/validate_integration.py", "--registry", "localhost").wait() == 64
    lone = run.python("tests/validate_integration.py", "--router", "http://127.0.0.1:1")
    assert lone.wait() == 64
    lone.wait_for_line("--router needs --registry")


def _alive(pid: int) -> bool:
    """Whether it runs; one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
