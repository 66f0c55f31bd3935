"""A copy of the project in a folder with a space in its name, for the scripts to run in."""

import atexit
import contextlib
import functools
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rig.bare_machine import configure
from rig.processes import ROOT
from rig.routers import router_argv, router_names

STAND_IN = Path(__file__).with_name("stand_in.py")


class Tree:
    """One copy of the project and the environment that its scripts get."""

    def __init__(self, root: Path, env: dict[str, str]) -> None:
        self.root = root
        self.logs = root / "logs"
        self.env = env
        self._started: list[subprocess.Popen[Any]] = []

    def popen(self, *argv: str | Path, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(part) for part in argv],
            cwd=self.root.parent,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        return process

    def at_terminal(self, name: str, **env: str) -> tuple[subprocess.Popen[bytes], int]:
        """Begin one of the project's scripts at a terminal; and the other end of that."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            ["setsid", "--ctty", self.root / name],
            env={**self.env, **env},
            **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        )
        os.close(theirs)
        self._started.append(process)
        return process, ours

    def close(self) -> None:
        """End the scripts that a failed test left running."""
        for process in self._started:
            with process:
                process.kill()

    def run(self, *argv: str | Path, timeout: float = 60, **env: str) -> tuple[int, str]:
        """Run to the end, in the folder above the tree; the exit code and all output."""
        with self.popen(*argv, **env) as process:
            try:
                output, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
                raise AssertionError(f"{argv} did not end in {timeout} s:\n{output}") from None
        return process.returncode, output

    def script(self, name: str, *arguments: str | Path, **env: str) -> tuple[int, str]:
        """Run one of the project's scripts."""
        return self.run(self.root / name, *arguments, **env)

    def library(self, commands: str, **env: str) -> tuple[int, str]:
        """Run shell commands that use the library; $STAND_IN starts the stand-in service."""
        return self.run("bash", "-c", self.with_library(commands), **env)

    def with_library(self, commands: str) -> str:
        return (
            f'set -euo pipefail; source "{self.root}/service_lib.sh"\n'
            f'STAND_IN=("{sys.executable}" "{STAND_IN}")\n{commands}'
        )

    def pid(self, name: str) -> int:
        return int((self.logs / f"{name}.pid").read_text().splitlines()[0])

    def pid_files(self) -> list[str]:
        return sorted(path.name for path in self.logs.glob("*.pid"))

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    def program(self, name: str, text: str) -> Path:
        """An executable file."""
        path = self.write(name, text)
        path.chmod(0o755)
        return path

    def system_path(self, *first: Path) -> str:
        """A PATH of these folders and the system's tools, without cargo and an installed router."""
        return ":".join(map(str, (*first, system_tools())))


@functools.cache
def system_tools() -> Path:
    """A folder of links, one for all tests of this process."""
    folder = Path(tempfile.mkdtemp(prefix="system tools "))
    atexit.register(shutil.rmtree, folder)
    tools = {tool.name: tool for place in ("/bin", "/usr/bin") for tool in Path(place).iterdir()}
    for name in tools.keys() - {"cargo", "infini-router"}:
        (folder / name).symlink_to(tools[name])
    return folder


def marked_processes() -> set[int]:
    """Every live process that a launch script started, whoever ran that script."""
    found = set()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if b"INFINILM_LAUNCH_ID=" in environ.read_bytes():
                found.add(int(environ.parent.name))
    return found


def processes_of(tree: Tree) -> list[int]:
    """The live processes whose environment names this tree."""
    mark = f"INFINILM_TEST_TREE={tree.root}".encode()
    found = []
    for pid in marked_processes():
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return sorted(found)


@pytest.fixture(name="processes_of")
def processes_of_fixture() -> object:
    return processes_of


def tracked_files() -> list[str]:
    """The files that a clone of this working tree would have."""
    listing = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    )
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def copy_project(target: Path) -> None:
    for name in tracked_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def clean_environment() -> dict[str, str]:
    """The variables of this process without any that the scripts read."""
    read = (
        "HOST",
        "PORT",
        "LOG_DIR",
        "REGISTRY_",
        "ROUTER_",
        "BABYSITTER_",
        "LAUNCH_",
        "PYTHON_CMD",
        "ROUTERS",
        "CARGO_TARGET_DIR",
        "INFINILM_ROUTER_BIN",
    )
    return {key: value for key, value in os.environ.items() if not key.startswith(read)}


def router_choice() -> dict[str, str]:
    """The Rust router as built in this checkout, since building one in each copy takes minutes."""
    if "rust" in router_names():
        return {"INFINILM_ROUTER_BIN": router_argv("rust")[0]}
    return {"ROUTER_IMPLEMENTATION": "python"}


@pytest.fixture
def make_tree(tmp_path: Path) -> Iterator[object]:
    """Makes trees; what was started in them is stopped after the test, and must be gone."""
    made: list[Tree] = []

    def make(name: str = "a tree") -> Tree:
        root = tmp_path / name
        copy_project(root)
        env = {
            **clean_environment(),
            **router_choice(),
            "INFINILM_PYTHON": sys.executable,
            "INFINILM_TEST_TREE": str(root),
            "TREE_TIMEOUT": "5",
        }
        made.append(Tree(root, env))
        return made[-1]

    yield make
    for tree in made:
        tree.close()
        tree.script("stop_all.sh", STOP_TIMEOUT="2")
        assert processes_of(tree) == []


@pytest.fixture
def tree(make_tree: object) -> Tree:
    assert callable(make_tree)
    made: Tree = make_tree()
    return made


@pytest.fixture
def bare(tree: Tree) -> Tree:
    """A tree on a machine without cargo and without a built router; no port of it is fixed."""
    for variable in ("INFINILM_ROUTER_BIN", "ROUTER_IMPLEMENTATION"):
        tree.env.pop(variable, None)
    tree.env.update(PATH=tree.system_path(), ROUTER_PORT="0", ROUTER_REGISTRY_URL="http://[::1]:9")
    configure(tree, implementation=None)
    return tree
