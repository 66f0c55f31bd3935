"""Who listens on a port, and how many are connected to it, as /proc/net shows it."""

import ipaddress
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

LISTEN = "0A"
ESTABLISHED = "01"
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


class Socket(NamedTuple):
    """A local TCP socket."""

    address: str
    """IP address in text; brackets are for URLs, not here."""
    inode: int


def listeners(port: int) -> list[Socket]:
    """The sockets that listen on `port`, on any address."""
    return list(_sockets(port, LISTEN))


def count_connections(port: int) -> int:
    """Established connections whose local end is `port`."""
    return sum(1 for _ in _sockets(port, ESTABLISHED))


def owner(inode: int, pids: Iterable[int]) -> int | None:
    """The first of `pids` that has the socket open, as far as we are allowed to see."""
    target = f"socket:[{inode}]"
    return next((pid for pid in pids if _holds(pid, target)), None)


def reachable(address: str) -> str:
    """Where to connect to for a listener bound to `address`, in the form URLs need."""
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        return "127.0.0.1" if ip.version == 4 else "[::1]"
    return f"[{ip}]" if ip.version == 6 else str(ip)


def _sockets(port: int, state: str) -> Iterator[Socket]:
    suffix = f":{port:04X}"
    for table in TABLES:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:  # a machine without IPv6
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == state and fields[1].endswith(suffix):
                yield Socket(_address(fields[1].partition(":")[0]), int(fields[9]))


def _address(text: str) -> str:
    """The kernel prints addresses as 32-bit words in the machine's byte order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    packed = b"".join(socket.htonl(word).to_bytes(4, "big") for word in words)
    return str(ipaddress.ip_address(packed))


def _holds(pid: int, target: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        with os.scandir(folder) as links:
            return any(_link(link.path) == target for link in links)
    except OSError:
        return False


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115  # called for every open file of a process
    except OSError:
        return ""
