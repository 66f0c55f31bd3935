"""Keeps the table equal to what the registry says: watches it, and polls it beside that."""

import asyncio
import logging
import time
from collections.abc import Callable

from infinilm_router.config import RouterConfig
from infinilm_router.models.learner import ModelLearner
from infinilm_router.registry.client import (
    NotModified,
    RegistryAnswer,
    RegistryClient,
    RegistryError,
)
from infinilm_router.registry.membership import Membership
from infinilm_router.registry.saved import SavedList
from infinilm_router.router.table import Service, TableStore

log = logging.getLogger(__name__)

STARTUP_PATIENCE = 1.0  # seconds that the saved list waits for a first answer
RETRY_INTERVAL = 1.0  # seconds between attempts while no registry answers, at most
PACE = 0.02  # seconds between two answers of a watch, at least
SHORTEST_WAIT = 0.05  # seconds


class RegistrySync:
    """The one writer of the table's list of services. Static services always stay in it."""

    def __init__(
        self,
        config: RouterConfig,
        client: RegistryClient,
        store: TableStore,
        *,
        learner: ModelLearner,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._store = store
        self._learner = learner
        self._clock = clock
        self._membership = Membership()
        folder = config.state_dir
        self._saved = SavedList(folder, config.router_port) if folder is not None else None
        self._known = False
        self._reachable: bool | None = None  # None: not asked yet
        self._revision: int | None = None
        self._polled_at = 0.0
        self._read(config)

    def _read(self, config: RouterConfig) -> None:
        self._statics = {service.name: service for service in config.static_services}
        self._interval = config.registry_sync_interval
        self._membership.grace = config.service_removal_grace_period

    def configure(self, config: RouterConfig) -> None:
        """Follow the registry by these settings, and with these static services, from now on."""
        self._read(config)
        self._publish()

    async def run(self) -> None:
        """Follow the registry until cancelled."""
        await self._first_answer()
        while True:
            left = self._polled_at + self._interval - self._clock()
            if not self._reachable:
                await asyncio.sleep(min(self._interval, RETRY_INTERVAL))
                await self._poll()
            elif left <= 0:
                await self._poll()
            elif self._revision is None:
                await asyncio.sleep(left)
            else:
                await self._watch(self._revision, max(left, SHORTEST_WAIT))

    async def _first_answer(self) -> None:
        self._publish()
        try:
            async with asyncio.timeout(STARTUP_PATIENCE):
                await self._poll()
        except TimeoutError:
            self._failed(RegistryError(f"no answer within {STARTUP_PATIENCE:g} s"))
        if not self._known and self._restore():
            self._known = True
            self._publish()

    def _restore(self) -> bool:
        """Begin with the saved list; whether there is one."""
        services = self._saved.load() if self._saved is not None else ()
        if services:
            log.warning("starting from the saved list services=%d", len(services))
            self._membership.restore(services)
        return bool(services)

    async def _poll(self) -> None:
        """Fetch the list as it is."""
        self._polled_at = self._clock()
        try:
            await self._take(await self._client.fetch())
        except RegistryError as error:
            self._failed(error)

    async def _watch(self, revision: int, wait: float) -> None:
        """Wait for the list to change; ends after `wait` seconds without a change."""
        started = self._clock()
        try:
            answer = await self._client.fetch(since=revision, wait=wait)
            await self._take(answer)
        except RegistryError as error:
            self._failed(error)
            return
        if isinstance(answer, NotModified) or answer.revision == revision:
            # A registry that does not hold answers back must not be asked without pause.
            left = started + wait - self._clock()
            await asyncio.sleep(max(0.0, min(left, RETRY_INTERVAL)))
        await asyncio.sleep(PACE)

    async def _take(self, answer: RegistryAnswer | NotModified) -> None:
        """Bring an answer into the table: what is new at once, then what is gone."""
        if isinstance(answer, RegistryAnswer):
            self._revision = answer.revision
            if not self._known and not any(service.is_engine for service in answer.services):
                self._restore()  # router and registry started together: engines are on their way
            self._membership.healthy(answer.services, self._clock())
            self._known = True
            self._publish()
            if self._membership.missing:
                self._membership.listed((await self._client.fetch_all()).services)
        for name in self._membership.expire(self._clock(), self._store.current.down):
            log.info("service removed name=%s", name)
        self._answered()
        self._publish()
        if self._saved is not None and self._membership.services:
            await asyncio.to_thread(self._saved.save, self._membership.services)

    def _publish(self) -> None:
        """Publish static and registered services, if anything changed."""
        declared = [*self._statics.values(), *self._registered()]
        services = tuple(self._learner.fill(service) for service in declared)
        before = self._store.current
        if services == before.services and self._known == before.known:
            return
        _log_changes(before.services, services)
        self._store.set_services(services, known=self._known)

    def _registered(self) -> list[Service]:
        return [s for s in self._membership.services if s.name not in self._statics]

    def _answered(self) -> None:
        if self._reachable is False:
            log.info("registry answers again")
        self._reachable = True

    def _failed(self, error: RegistryError) -> None:
        """Go on with what is known; the next success starts from a whole list."""
        if self._reachable is not False:
            log.warning("registry unreachable, going on with what is known reason=%r", str(error))
        self._reachable = False
        self._revision = None


def _log_changes(before: tuple[Service, ...], after: tuple[Service, ...]) -> None:
    old = {service.name: service for service in before}
    for service in after:
        previous = old.get(service.name)
        if previous is None:
            log.info("service added name=%s address=%s:%d models=%s", service.name,
                     *service.address, ",".join(service.models[:8]) or "-")  # fmt: skip
        elif previous.status != service.status or previous.address != service.address:
            log.info("service changed name=%s address=%s:%d status=%s", service.name,
                     *service.address, service.status)  # fmt: skip
