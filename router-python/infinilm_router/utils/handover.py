"""How a router gives its listening sockets to its successor, so that no connection is lost.

For a moment both hold the same sockets: what waits in their queues is accepted by one or the other.
(SO_REUSEPORT would give each its own, and what waits in one of them is reset when it is closed.)

At a Unix socket, the door, the old one says `1`, `L` with some listening sockets, again until all
are said, and `.`. The new one says `T` (taken) when it serves, and the old one `R` (released) when
it accepts no more. Both must be processes of one user: whoever holds the sockets can read what
clients send.
"""

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

VERSION: Final = b"1"
LISTENER: Final = b"L"
END: Final = b"."
TAKEN: Final = b"T"
RELEASED: Final = b"R"
ANSWER_LIMIT: Final = 5.0  # seconds for each word of the old router
BUSY: Final = "no answer in 5 s, another router may be taking over"
SUCCESSOR_LIMIT: Final = 120.0  # seconds in which a successor gets ready
MAX_LISTENERS: Final = 4096
AT_A_TIME: Final = 64  # listeners; the kernel takes 253, and a few hundred words
ACCEPT_PAUSE: Final = 0.1  # seconds after a successor could not be accepted: no descriptors, mostly


class HandoverError(Exception):
    """The listening sockets can't be taken over, or not be offered."""


class Successor:
    """The router that has taken over."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer

    def release(self) -> None:
        """Say that this router accepts no more."""
        with self._peer, contextlib.suppress(OSError):
            self._peer.send(RELEASED)


class Door:
    """Where a successor asks for the listening sockets."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            HandoverError: another router has its door there, or the folder can't be written to.
        """
        self._path = path
        _remove_leftover(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._open()
        except OSError as error:
            self._socket.close()
            reason = error.strerror or error
            raise HandoverError(
                f"can't offer the port at {path}: {reason}; choose another --handover, or none"
            ) from None

    def _open(self) -> None:
        with _short(self._path) as address:
            self._socket.bind(address)
            self._path.chmod(stat.S_IRUSR | stat.S_IWUSR)  # before anybody can connect
            self._socket.listen(1)
        self._socket.setblocking(False)

    async def offer(self, listeners: Sequence[int]) -> Successor:
        """Wait for a successor that takes these sockets over and serves."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, _ = await loop.sock_accept(self._socket)
            except OSError:
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            if await _is_taken(peer, listeners):
                return Successor(peer)

    def close(self) -> None:
        """Offer nothing any more."""
        if self._socket.fileno() >= 0:
            self._socket.close()
            self._path.unlink(missing_ok=True)


async def _is_taken(peer: socket.socket, listeners: Sequence[int]) -> bool:
    """Hand them over; False, and the connection is closed, when the successor gives up."""
    taken = False
    try:
        if (user := _user_of(peer)) != os.geteuid():
            log.warning("the port is not given to a process of another user uid=%d", user)
            return False
        peer.setblocking(False)
        async with asyncio.timeout(SUCCESSOR_LIMIT):
            peer.send(VERSION)
            for first in range(0, len(listeners), AT_A_TIME):
                socket.send_fds(peer, [LISTENER], listeners[first : first + AT_A_TIME])
            peer.send(END)
            taken = await asyncio.get_running_loop().sock_recv(peer, 1) == TAKEN
    except OSError:  # TimeoutError too
        pass
    finally:
        if not taken:
            peer.close()
    return taken


class Inheritance:
    """What the old router gives: its listening sockets, until `confirm` it serves on as before."""

    def __init__(self, path: Path) -> None:
        """Ask for them. Blocks for a moment.

        Raises:
            HandoverError: nobody gives any.
        """
        self.listeners: list[socket.socket] = []
        self._peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._peer.settimeout(ANSWER_LIMIT)
        try:
            with _short(path) as address:
                self._peer.connect(address)
            self._receive()
        except OSError as error:
            self.give_up()
            late = isinstance(error, TimeoutError | BlockingIOError)
            raise HandoverError(
                f"no router gives its port at {path} ({BUSY if late else error.strerror or error});"
                " is one running that was started with the same --handover? If not, stop it first,"
                " and start this one without --take-over"
            ) from None

    def _receive(self) -> None:
        if (user := _user_of(self._peer)) != os.geteuid():
            raise OSError(f"it runs as user {user}, this one as {os.geteuid()}")
        if self._peer.recv(1) != VERSION:
            raise OSError("it is no router, or one of another version")
        while len(self.listeners) <= MAX_LISTENERS:
            word, fds, _, _ = socket.recv_fds(self._peer, 1, AT_A_TIME)
            self.listeners += (socket.socket(fileno=fd) for fd in fds)
            if word == END and self.listeners:
                return
            if word != LISTENER or not fds:
                break
        raise OSError("it gave no sockets")

    def is_gone(self) -> bool:
        """Whether the old router has ended, or has been told to."""
        self._peer.setblocking(False)
        try:
            return self._peer.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self._peer.settimeout(ANSWER_LIMIT)

    def confirm(self) -> bool:
        """Say that this router serves; True when the old one accepts no more. Blocks a moment."""
        with self._peer:
            try:
                self._peer.send(TAKEN)
                return self._peer.recv(1) in (RELEASED, b"")
            except TimeoutError:
                return False
            except OSError:  # it has ended
                return True

    def give_up(self) -> None:
        """Leave everything to the old router."""
        for listener in self.listeners:
            listener.close()
        self._peer.close()


def _remove_leftover(path: Path) -> None:
    """Remove the door of a router that was killed; one that answers is left alone."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, _short(path) as address:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):  # if it can't be removed, binding says why
                path.unlink()
            return
        except OSError:  # it is busy, or not ours
            pass
    raise HandoverError(
        f"another router gives its port at {path}; choose another --handover, or --take-over"
    )


def _user_of(peer: socket.socket) -> int:
    """The user id of the process at the other end when it connected, or began to listen."""
    size = struct.calcsize("iII")
    _, user, _ = struct.unpack("iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(user)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """The path of a socket in few bytes, since the kernel takes 107 at most."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
