"""Asking the services how they are: jittered, bounded, one question at a time for each service."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from socket import AddressFamily, gaierror

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from infinilm_registry.addresses import Networks, address_problem
from infinilm_registry.entry import Entry, Liveness, ProbeResult
from infinilm_registry.errors import Fault
from infinilm_registry.loops import stopped_within
from infinilm_registry.service import Service
from infinilm_registry.table import ServiceTable

_AT_ONCE = 64
_JITTER = (0.9, 1.1)
_NOT_SERVED = (404, 405, 501)
_STALE_SECONDS = 5.0  # between two probes of a stale service: what they say settles its case
_RESOLVE_SECONDS = 5.0


class GuardedResolver(AbstractResolver):
    """Resolves names and drops every address that could not have been registered itself (R34)."""

    def __init__(self, allowed: Networks) -> None:
        self._allowed = allowed
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily = AddressFamily.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of `host` that may be called; OSError if none is left."""
        found = await self._resolver.resolve(host, port, family)
        good = [one for one in found if not address_problem(ip_address(one["host"]), self._allowed)]
        if not good:
            raise OSError(f"{host} has no address that may be called")
        return good

    async def close(self) -> None:
        """Release the inner resolver."""
        await self._resolver.close()


async def resolved_host_fault(service: Service, allowed: Networks) -> Fault | None:
    """With allowed networks: what is wrong with the addresses of the service's host name."""
    if not allowed:
        return None
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(service.host, service.port)
    except (gaierror, TimeoutError):
        return Fault("host", service.host, "does not resolve, so its network cannot be checked")
    addresses = {ip_address(sockaddr[0]) for *_, sockaddr in found}
    problems = (address_problem(address, allowed) for address in addresses)
    problem = next(filter(None, problems), None)
    return Fault("host", service.host, f"has an address that {problem}") if problem else None


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """Seconds between two probes of a service, seconds for one, and where probes may go."""

    interval: float
    timeout: float
    allowed: Networks = ()


class Prober:
    """Owns the HTTP client of the probes and the probes in flight."""

    def __init__(
        self,
        table: ServiceTable,
        settings: ProbeSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._settings = settings
        self._clock = clock
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._flying: dict[str, asyncio.Task[ProbeResult]] = {}
        self._due: dict[str, float] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_AT_ONCE,
                force_close=True,
                use_dns_cache=False,
                resolver=GuardedResolver(settings.allowed),
            ),
            timeout=aiohttp.ClientTimeout(total=settings.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Probe every service once in an interval until `stop`."""
        pause = min(0.5, self._settings.interval / 10)
        while not await stopped_within(stop, pause):
            self._start_due()

    async def close(self) -> None:
        """Give up what is in flight and release the connections."""
        flying = list(self._flying.values())
        for task in flying:
            task.cancel()
        await asyncio.gather(*flying, return_exceptions=True)
        await self._session.close()

    async def probe_now(self, service: Service) -> ProbeResult:
        """The result of a probe of `service`, joined if one is in flight."""
        return await asyncio.shield(self._launch(service))

    def _start_due(self) -> None:
        now = self._clock()
        entries = {entry.service.name: entry for entry in self._table.entries()}
        self._due = {name: at for name, at in self._due.items() if name in entries}
        for name, entry in entries.items():
            # The first probe falls anywhere in the interval, so that a restart is no storm.
            due = self._due.setdefault(name, now + self._interval(entry) * random.random())  # noqa: S311
            if due <= now:
                self._due[name] = now + self._interval(entry) * random.uniform(*_JITTER)  # noqa: S311
                self._launch(entry.service)

    def _interval(self, entry: Entry) -> float:
        interval = self._settings.interval
        return min(interval, _STALE_SECONDS) if entry.liveness is Liveness.STALE else interval

    def _launch(self, service: Service) -> asyncio.Task[ProbeResult]:
        task = self._flying.get(service.name)
        if task is None:
            task = asyncio.create_task(self._probe(service))
            self._flying[service.name] = task
            task.add_done_callback(lambda _: self._flying.pop(service.name, None))
        return task

    async def _probe(self, service: Service) -> ProbeResult:
        async with self._slots:
            result = await self._ask(service.probe_urls())
        self._record(service, result)
        return result

    def _record(self, service: Service, result: ProbeResult) -> None:
        self._table.record_probe(service, result)
        entry: Entry | None = self._table.find(service.name)
        promised_nothing = service.heartbeat_interval is None
        if result is ProbeResult.GOOD and promised_nothing and entry and entry.service is service:
            # Registered by hand or by an old babysitter: its answer is its sign of life.
            self._table.renew(service.name)

    async def _ask(self, urls: tuple[str, ...]) -> ProbeResult:
        verdict = ProbeResult.REFUSED
        for url in urls:
            result = await self._ask_at(url)
            if result is None:
                verdict = ProbeResult.BAD  # something is there, and serves none of the calls
            elif result is not ProbeResult.REFUSED:
                return result
        return verdict

    async def _ask_at(self, url: str) -> ProbeResult | None:
        """The result at one place; None where the call is not served."""
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                status = response.status
        except TimeoutError:
            return ProbeResult.SILENT
        except aiohttp.ClientSSLError:
            return ProbeResult.BAD  # something answers there, and it is no TLS that we trust
        except aiohttp.ClientConnectorError as error:
            return _unconnected(error.os_error)
        except (aiohttp.ClientError, ValueError):
            return ProbeResult.BAD  # it took the connection, and then spoke no HTTP
        if status in _NOT_SERVED:
            return None
        return ProbeResult.GOOD if 200 <= status < 300 else ProbeResult.BAD


def _unconnected(error: OSError) -> ProbeResult:
    if isinstance(error, ConnectionRefusedError):
        return ProbeResult.REFUSED
    if isinstance(error, ConnectionResetError):
        return ProbeResult.BAD  # it took the connection, and broke it off before TLS stood
    return ProbeResult.SILENT
