"""A port that closes."""

import asyncio
import os
import socket

from infinilm_router.app import App, _drained
from infinilm_router.config import RouterConfig
from infinilm_router.port import Port
from infinilm_router.utils.fetch import control_session

REQUEST = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"


async def close_with_a_full_queue(count: int) -> list[socket.socket]:
    config = RouterConfig(host="127.0.0.1", router_port=0, drain_delay=0)
    async with control_session() as session:
        app = App(config, lambda: config)
        parts = app._build(session)
        port = await Port.open(*parts)
        with socket.socket(fileno=os.dup(port.filenos()[0])) as listener:
            address = listener.getsockname()
        clients = [socket.create_connection(address, 5) for _ in range(count)]
        for client in clients:
            client.sendall(REQUEST)  # nothing is awaited: nobody accepts meanwhile
        parts.gateway.draining = True
        await _drained(parts.gateway, port)
        await app._stop_loops()
        parts.gateway.close()
    return clients


def test_who_waits_in_the_queue_of_a_port_that_closes_is_served() -> None:
    for client in asyncio.run(close_with_a_full_queue(20)):
        with client:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
