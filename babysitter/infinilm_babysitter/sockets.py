"""Who listens on a port, and how many are connected to it, as the kernel tells it.

It is asked through sock_diag(7), which looks sockets up by state and port. Where that is missing
(gVisor, a kernel without tcp_diag) /proc/net tells the same, as text of all sockets there are: a
busy machine has tens of thousands, and each probe would cost 4 ms for every thousand of them.
"""

import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from infinilm_babysitter.proctree import OUT_OF_DESCRIPTORS

LISTEN: Final = 10
ESTABLISHED: Final = 1
TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))

# linux/netlink.h, linux/sock_diag.h
NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST_AND_DUMP: Final = 0x301
MESSAGE: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, sender
ERROR: Final = struct.Struct("=i")  # nlmsgerr begins with the negative errno
# linux/inet_diag.h: family, protocol, states; inet_diag_sockid begins with the port (big-endian)
REQUEST: Final = struct.Struct("=BBxxI2s46x")
ANSWER: Final = struct.Struct("=BBxx4x16s44xI")  # family, state; the own address; the inode
ANSWERS_AT_ONCE: Final = 64 * 1024  # bytes: more than the kernel puts into one datagram
PATIENCE: Final = 1.0  # seconds; it answers at once


class Socket(NamedTuple):
    """A local TCP socket."""

    address: str
    """IP address in text; brackets are for URLs, not here."""
    inode: int


def listeners(port: int) -> list[Socket]:
    """The sockets that listen on `port`, on any address."""
    return _sockets(port, LISTEN)


def count_connections(port: int) -> int:
    """Established connections whose local end is `port`."""
    return len(_sockets(port, ESTABLISHED))


def owner(inode: int, pids: Iterable[int]) -> int | None:
    """The first of `pids` that has the socket open, as far as we are allowed to see.

    Raises:
        OSError: we could not look, for want of a descriptor.
    """
    target = f"socket:[{inode}]"
    return next((pid for pid in pids if _holds(pid, target)), None)


def reachable(address: str) -> str:
    """Where to connect to for a listener bound to `address`, in the form URLs need."""
    ip = ipaddress.ip_address(address)
    if ip.is_unspecified:
        return "[::1]" if ip.version == 6 and _has_ipv6_loopback() else "127.0.0.1"
    return f"[{ip}]" if ip.version == 6 else str(ip)


def _has_ipv6_loopback() -> bool:
    """Containers have none, as a rule: a listener on `::` is reached by IPv4 there."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _sockets(port: int, state: int) -> list[Socket]:
    try:
        return list(ask_kernel(port, state))
    except OSError:
        return list(read_tables(port, state))


def ask_kernel(port: int, state: int) -> Iterator[Socket]:
    """The sockets of this local port and state.

    Raises:
        OSError: this kernel cannot be asked.
    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(PATIENCE)
        for family in (socket.AF_INET, socket.AF_INET6):
            request = REQUEST.pack(family, socket.IPPROTO_TCP, 1 << state, port.to_bytes(2, "big"))
            length = MESSAGE.size + len(request)
            kernel.send(
                MESSAGE.pack(length, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST_AND_DUMP, 0, 0) + request
            )
            for answer in _answers(kernel):
                address_family, _, address, inode = ANSWER.unpack_from(answer)
                size = 4 if address_family == socket.AF_INET else 16
                yield Socket(str(ipaddress.ip_address(address[:size])), inode)


def _answers(kernel: socket.socket) -> Iterator[bytes]:
    """The messages of the dump that was asked for, up to its end."""
    while data := kernel.recv(ANSWERS_AT_ONCE):
        while data:
            length, kind, _, _, _ = MESSAGE.unpack_from(data)
            body, data = data[MESSAGE.size : length], data[(length + 3) & ~3 :]
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                code = -ERROR.unpack_from(body)[0]
                raise OSError(code, os.strerror(code))
            yield body


def read_tables(port: int, state: int) -> Iterator[Socket]:
    """The same, from the text in /proc/net."""
    suffix = f":{port:04X}"
    for table in TABLES:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:  # a machine without IPv6
            continue
        for line in lines:
            fields = line.split()
            if fields[1].endswith(suffix) and int(fields[3], 16) == state:
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
    except OSError as error:
        if error.errno in OUT_OF_DESCRIPTORS:
            raise
        return False


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115  # called for every open file of a process
    except OSError:
        return ""
