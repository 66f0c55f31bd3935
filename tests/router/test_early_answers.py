"""An engine may answer before it has read a request, and never read the rest of it."""

import re
import socket
import threading
from collections.abc import Iterator

import pytest

from rig.fake_engine import FakeEngine
from rig.raw_client import ask
from rig.routers import ONE_POOL, StartRouter

CHAT = "/v1/chat/completions"
LARGE = b'{"model":"m","x":"%b"}' % (b"y" * 8_000_000)
ANSWER = b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\n{}"


def serve(client: socket.socket) -> None:
    """Answer requests; a large one at once, and then read no more."""
    with client:
        while True:
            head, _, body = read_head(client).partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            if not length:
                return
            if int(length[1]) > 1_000_000:
                client.sendall(ANSWER % b"401 Unauthorized")
                threading.Event().wait()  # as long as the test runs
            while len(body) < int(length[1]):
                body += client.recv(65536)
            client.sendall(ANSWER % b"200 OK")


def read_head(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data and (more := client.recv(65536)):
        data += more
    return data


@pytest.fixture
def hasty() -> Iterator[int]:
    """The port of such an engine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:  # the test is over
                    return
                threading.Thread(target=serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]


def test_a_connection_with_half_a_request_in_it_is_not_used_again(
    start: StartRouter, engine: FakeEngine, hasty: int
) -> None:
    health = f"http://127.0.0.1:{engine.port + 1}/health"
    metadata = {"models": ["m"], "health_url": health}
    service = {"name": "hasty", "host": "127.0.0.1", "port": hasty, "metadata": metadata}
    router = start([service], flags={"response-timeout": 5, **ONE_POOL[start.name]})
    assert ask(router.url, "POST", CHAT, (), LARGE).status == 401
    assert ask(router.url, "POST", CHAT, (), b'{"model":"m"}').status == 200
