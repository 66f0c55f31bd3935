"""The Python environment that the scripts make for themselves."""

import sys
import time
from pathlib import Path

import pytest

OLD_PYTHON = """#!/bin/sh
[ "$1" = --version ] && { echo Python 3.9.2; exit 0; }
exit 1
"""


def with_only(tree, **programs: str) -> str:
    """A PATH whose python3.* are these programs, beside the system's other tools."""
    for name, text in programs.items():
        tree.write(f"fake/{name}", text).chmod(0o755)
    tools = tree.root / "tools"
    tools.mkdir()
    for tool in Path("/usr/bin").iterdir():
        if not tool.name.startswith("python3"):
            (tools / tool.name).symlink_to(tool)
    return f"{tree.root}/fake:{tools}"


OLD_ONLY = dict.fromkeys(
    ("python3", "python3.11", "python3.12", "python3.13", "python3.14"), OLD_PYTHON
)


def test_a_python_that_is_too_old_is_named_with_what_to_do(tree):
    del tree.env["INFINILM_PYTHON"]
    code, output = tree.script("launch_registry.sh", PATH=with_only(tree, **OLD_ONLY))
    assert code == 69
    assert "Python 3.11 or newer is needed; python3 here is: Python 3.9.2" in output
    assert tree.pid_files() == []


@pytest.mark.parametrize("variable", ["INFINILM_PYTHON", "PYTHON_CMD"])
def test_a_python_named_in_the_environment_is_checked(tree, variable):
    tree.env.pop("INFINILM_PYTHON")
    code, output = tree.script("launch_registry.sh", **{variable: "/no/such/python"})
    assert code == 69
    assert "'/no/such/python', which does not run as Python 3.11 or newer" in output


def test_a_python_without_venv_is_reported(tree):
    del tree.env["INFINILM_PYTHON"]
    no_venv = f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\nexec "{sys.executable}" "$@"\n'
    path = with_only(tree, **{**OLD_ONLY, "python3": no_venv})
    code, output = tree.script("launch_registry.sh", PATH=path)
    assert code == 69
    assert "cannot make virtual environments" in output
    assert "python3-venv" in output


def test_the_fastest_python_on_the_path_is_taken(tree):
    trials = {"slow": "echo 3", "fast": "echo 1", "old": "exit 1", "middling": "echo 2"}
    folders = [
        tree.write(f"{name}/python3", f"#!/bin/sh\n{trial}\n").parent
        for name, trial in trials.items()
    ]
    for folder in folders:
        (folder / "python3").chmod(0o755)
    path = ":".join([*map(str, folders), "/usr/bin", "/bin"])
    assert tree.library("find_python", PATH=path) == (0, f"{tree.root}/fast/python3\n")


def timed_lines(process) -> tuple[list[str], float]:
    """All lines of a process and the longest silence between two, in seconds."""
    lines, longest, last = [], 0.0, time.monotonic()
    for line in process.stdout:
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
        lines.append(line.rstrip("\n"))
    process.wait(30)
    return lines, longest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_first_run_makes_the_environment_visibly_and_the_next_reuses_it(tree):
    del tree.env["INFINILM_PYTHON"]
    commands = tree.with_library(
        'ensure_python; "$PYTHON" -c "import aiohttp, toml, uvloop"; say done'
    )
    first, second = (tree.popen("bash", "-c", commands) for _ in range(2))  # two at once
    lines, silence = timed_lines(first)
    others, _ = timed_lines(second)
    assert (first.returncode, second.returncode) == (0, 0), (lines, others)
    assert silence < 5.5, lines
    assert lines[-1] == others[-1] == "done"
    installed = [line for line in lines + others if "installing requirements.txt into" in line]
    assert len(installed) == 1
    assert tree.run("bash", "-c", commands) == (0, "done\n")
    requirements = tree.root / "requirements.txt"
    requirements.write_text(requirements.read_text() + "# changed\n")
    code, output = tree.run("bash", "-c", commands)
    assert code == 0
    assert "installing requirements.txt into" in output


@pytest.mark.slow
def test_an_installation_that_fails_shows_why_and_is_tried_again(tree):
    del tree.env["INFINILM_PYTHON"]
    tree.write("requirements.txt", "./no-such-package\n")
    for _ in range(2):
        code, output = tree.library("ensure_python")
        assert code == 69
        assert "installing requirements.txt failed" in output
        assert "no-such-package" in output


def test_activating_an_environment_that_cannot_be_made_ends_with_the_reason(tree):
    del tree.env["INFINILM_PYTHON"]
    (tree.root / ".venv").symlink_to("/proc/nowhere/venv")
    code, output = tree.run("bash", "-c", f"source '{tree.root}/activate_env.sh'")
    assert code == 69
    assert output.count("waiting for another script") == 0
    assert "/.venv" in output
