"""Routers that take over the port of another one, and what else may sit at the door."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rig.processes import Program, Programs, free_port, wait_until
from rig.raw_client import request_bytes
from rig.routers import FAST, Router, flag_list, router_argv

HEALTH = request_bytes("GET", "/health", (("Connection", "close"),))


def handover_flags(tmp_path: Path) -> dict[str, Any]:
    """Of a router that gives its port away at a path too long for a socket's address."""
    folder = tmp_path / ("a folder with a long name " * 4)
    folder.mkdir()
    return {"router-port": free_port(), "handover": folder / "router.handover"}


def successor(router: Router, run: Programs, flags: dict[str, Any], name: str = "") -> Router:
    """A router that has taken over the port of this one."""
    words = {**flags, "take-over": True, "state-dir": "none", "access-log": "errors"}
    return Router(run, name or router.name, words)


def fails(run: Programs, name: str, flags: dict[str, Any]) -> str:
    """What a router says that can't start."""
    words = {"host": "127.0.0.1", **FAST, "state-dir": "none", **flags}
    program = run.start(*router_argv(name), *flag_list(words))
    assert program.wait(40) == 1, program.output
    return program.output


def services_file(router: Router) -> str:
    """The static services that a router was started with."""
    words: list[str] = list(router.program.process.args)  # type: ignore[arg-type]
    return words[words.index("--static-services") + 1]


def waiting_successor(
    run: Programs, name: str, flags: dict[str, Any], registry: str = ""
) -> Program:
    """A router that has been given the port, and waits for its registry."""
    nowhere = registry or f"http://127.0.0.1:{free_port()}"
    words = {"host": "127.0.0.1", **FAST, **flags, "take-over": True, "registry-url": nowhere}
    waiting = run.start(*router_argv(name), *flag_list({**words, "state-dir": "none"}))
    wait_until(lambda: has_listener(waiting.pid, flags["router-port"]), what="it has the port")
    assert "listening" not in waiting.output
    return waiting


def has_listener(pid: int, port: int) -> bool:
    """Whether a process has a socket that listens there."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {
        f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")
    }
    return any(target in listening for target in open_files(pid))


def open_files(pid: int) -> Iterator[str]:
    """What a process has open, as the kernel shows it."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield str(fd.readlink())


def speak(door: Path, words: bytes | None) -> socket.socket:
    """Something else than a router at this path, that says this to whoever connects, or nothing."""
    listener = socket.socket(socket.AF_UNIX)
    folder = os.open(door.parent, os.O_PATH)
    listener.bind(f"/proc/self/fd/{folder}/{door.name}")
    os.close(folder)
    listener.listen()

    def serve() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(ConnectionError):
            if words is not None:
                peer.sendall(words)
            peer.recv(1)  # returns when the router closes it

    threading.Thread(target=serve, daemon=True).start()
    return listener


AS_NOBODY = """
import os, socket, sys
os.chdir(sys.argv[1])
{first}
os.seteuid(65534)
{then}
"""


def as_nobody(door: Path, first: str, then: str) -> Callable[[], str]:
    """Do this at the door, first as this user, then as another one. Its output, at its end."""
    program = subprocess.Popen(
        [sys.executable, "-c", AS_NOBODY.format(first=first, then=then), door.parent],
        stdout=subprocess.PIPE,
        text=True,
    )
    output = program.stdout
    assert output
    assert output.readline() == "begun\n"

    def end() -> str:
        with program:  # not communicate(): it would miss what has come behind the first line
            return output.read()

    return end
