"""Sockets by port and state: the kernel's two ways to tell say the same."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from infinilm_babysitter.sockets import (
    ESTABLISHED,
    LISTEN,
    ask_kernel,
    count_connections,
    listeners,
    read_tables,
)
from rig.processes import wait_until


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0"),
        (socket.AF_INET6, "::1"),
        (socket.AF_INET6, "::"),
    ],
)
def test_a_listener_and_its_connections_are_found(sockets, family, address):
    server = sockets.enter_context(socket.create_server((address, 0), family=family, backlog=400))
    port = server.getsockname()[1]
    assert [found.address for found in listeners(port)] == [address]
    assert count_connections(port) == 0
    target = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    for _ in range(300):  # more than one datagram of answers
        sockets.enter_context(socket.create_connection((target, port)))
    sockets.enter_context(server.accept()[0])
    # Long answers are made in pieces: while other sockets come and go, one of ours may be told
    # twice or not at all.
    wait_until(lambda: count_connections(port) == 300)
    for state in (LISTEN, ESTABLISHED):
        wait_until(lambda s=state: sorted(ask_kernel(port, s)) == sorted(read_tables(port, s)))
    server.close()
    assert listeners(port) == []


def test_the_inode_is_that_of_the_open_file(sockets):
    server = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
    (found,) = listeners(server.getsockname()[1])
    assert found.inode == os.fstat(server.fileno()).st_ino


def test_where_the_kernel_cannot_be_asked_its_tables_are_read(sockets, monkeypatch):
    server = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = server.getsockname()[1]
    asked = listeners(port)
    monkeypatch.setattr("infinilm_babysitter.sockets.NETLINK_SOCK_DIAG", 31)  # nobody answers there
    with pytest.raises(OSError, match=r"\[Errno"):
        list(ask_kernel(port, LISTEN))
    assert listeners(port) == asked
