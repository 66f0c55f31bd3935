import asyncio
import contextlib
from typing import Any

import pytest

from infinilm_router.utils.fetch import FetchError, fetch, parse_json
from rig.processes import free_port


def failure(session: Any, url: str, limit: int = 100) -> FetchError:
    async def scenario() -> FetchError:
        async with session() as http:
            with pytest.raises(FetchError) as caught:
                await fetch(http, url, 2.0, limit=limit)
            return caught.value

    return asyncio.run(scenario())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_nobody_listens_on_is_told_from_other_failures(session: Any, host: str) -> None:
    assert failure(session, f"http://{host}:{free_port()}/").refused


@pytest.mark.parametrize("url", ["http://no-such-host.invalid/", "ftp://h/", "http://h:99999/"])
def test_addresses_that_lead_nowhere_are_failures_but_not_refusals(session: Any, url: str) -> None:
    assert not failure(session, url).refused


def test_an_answer_over_the_limit_is_refused_without_reading_all(
    session: Any, serving: Any
) -> None:
    async def scenario() -> None:
        async with serving({"/x": (200, b"x" * 5_000_000)}) as server, session() as http:
            with pytest.raises(FetchError, match="larger than 1000 bytes"):
                await fetch(http, f"{server.url}/x", 5.0, limit=1000)

    asyncio.run(scenario())


def test_a_redirect_is_an_answer_and_environment_proxies_are_not_used(
    session: Any, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")

    async def scenario() -> None:
        async with serving({"/x": (307, {})}) as server, session() as http:
            assert (await fetch(http, f"{server.url}/x", 5.0, limit=10)).status == 307
            assert server.paths == ["/x"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", b"junk"]
)
def test_an_answer_that_breaks_off_is_a_failure(session: Any, answer: bytes) -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(broken, "127.0.0.1", 0) as server, session() as http:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            with pytest.raises(FetchError):
                await fetch(http, url, 5.0, limit=100)

    asyncio.run(scenario())


def test_many_servers_that_hang_do_not_keep_an_answer_waiting(
    session: Any, serving: Any, silent: Any
) -> None:
    async def scenario() -> None:
        async with silent() as hanging, serving({"/x": (200, b"")}) as server, session() as http:
            waiting = [
                asyncio.create_task(fetch(http, hanging, 60.0, limit=100)) for _ in range(150)
            ]
            # A task of its own, so that the others come first.
            last = asyncio.create_task(fetch(http, f"{server.url}/x", 10.0, limit=100))
            assert (await last).status == 200
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(scenario())


def test_each_get_is_a_connection_of_its_own_whatever_the_server_keeps_open(
    session: Any, until: Any
) -> None:
    ended: list[bool] = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()
        await writer.wait_closed()
        ended.append(True)

    async def scenario() -> None:
        async with await asyncio.start_server(keep, "127.0.0.1", 0) as server, session() as http:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            for count in range(1, 4):
                await fetch(http, url, 5.0, limit=100)
                await until(lambda count=count: len(ended) == count)

    asyncio.run(scenario())


def test_numbers_that_json_does_not_have_become_null() -> None:
    assert parse_json(b"[NaN, Infinity, 1e999, 1.5]") == [None, None, None, 1.5]
