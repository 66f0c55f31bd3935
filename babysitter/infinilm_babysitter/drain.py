"""Let an engine's running answers end, and no new ones begin, before it is stopped."""

import asyncio
import logging

import aiohttp

from infinilm_babysitter import sockets
from infinilm_babysitter.config import Config
from infinilm_babysitter.waiting import wait_for_any

LOOK_EVERY = 0.1
ROUTER_TIMEOUT = 2.0

log = logging.getLogger(__name__)


async def drain(
    config: Config, session: aiohttp.ClientSession, hurry: asyncio.Event, *, known: bool
) -> None:
    """Return when the engine may be stopped, at once if `hurry` is set.

    Args:
        config: names the routers to ask and the limits.
        session: for asking them.
        hurry: set when there is no more time to lose.
        known: whether routers may send to the engine: a registry has it, or something has asked
            for its health lately. Else only connections that are open now are waited for.
    """
    if known:
        await _until_routers_know(config, session, hurry)
    await _until_quiet(config, hurry)


async def _until_routers_know(
    config: Config, session: aiohttp.ClientSession, hurry: asyncio.Event
) -> None:
    """Until every configured router has taken the engine out; without one, for the full time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + config.timing.drain_settle
    waiting = list(config.router_urls)
    while (left := deadline - loop.time()) > 0:
        answers = await asyncio.gather(*(_still_sends(config, session, url) for url in waiting))
        waiting = [url for url, sends in zip(waiting, answers, strict=True) if sends]
        if config.router_urls and not waiting:
            return
        if await wait_for_any(hurry, within=min(LOOK_EVERY, left)):
            return
    if waiting:
        log.warning("routers did not confirm the drain urls=%s", ",".join(waiting))


async def _still_sends(config: Config, session: aiohttp.ClientSession, url: str) -> bool:
    """Whether the router may still choose the engine. One that is not there does not."""
    timeout = aiohttp.ClientTimeout(total=ROUTER_TIMEOUT)
    try:
        async with session.get(f"{url}/services", allow_redirects=False, timeout=timeout) as answer:
            body = await answer.json(content_type=None)
    except aiohttp.ClientConnectorError as error:
        return not isinstance(error.os_error, ConnectionRefusedError)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError):
        return True
    services = body.get("services") if isinstance(body, dict) else None
    if not isinstance(services, list):
        return True
    return any(_is_ours(config, each) and each.get("healthy", True) for each in services)


def _is_ours(config: Config, service: object) -> bool:
    if not isinstance(service, dict):
        return False
    if service.get("name") == f"{config.name}-server":
        return True
    return service.get("host") == config.host and service.get("port") == config.port


def _connections(port: int) -> int:
    try:
        return sockets.count_connections(port)
    except OSError:  # for want of a descriptor, say: there may be some
        return 1


async def _until_quiet(config: Config, hurry: asyncio.Event) -> None:
    """Until nobody is connected to the engine, or the time for that is over."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + config.timing.drain_timeout
    while open_connections := _connections(config.port):
        left = deadline - loop.time()
        if left <= 0:
            log.warning("drain time over connections=%d", open_connections)
            return
        if await wait_for_any(hurry, within=min(LOOK_EVERY, left)):
            return
