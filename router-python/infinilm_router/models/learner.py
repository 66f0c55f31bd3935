"""Asks engines that were registered without models for their list."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import aiohttp

from infinilm_router.config import RouterConfig
from infinilm_router.registry.entries import Models, model_objects
from infinilm_router.router.table import Service, TableStore
from infinilm_router.utils.fetch import FetchError, fetch, parse_json
from infinilm_router.utils.tasks import Job, TaskSet

log = logging.getLogger(__name__)

MAX_LIST_BYTES = 8 * 1024 * 1024
FIRST_RETRY = 0.5  # seconds; doubles up to LAST_RETRY
LAST_RETRY = 30.0
REFRESH = 60.0  # seconds after which an engine that stayed up is asked again
PATHS = ("/v1/models", "/models")  # most engines have only the first, some only the second

Key = tuple[str, str, int]
"""Name, host and port: what was learned belongs to the engine at this address."""


class ModelLearner:
    """One task for each engine whose models nobody declared.

    `settled` is set when every engine known at the start has been asked once, with any outcome.
    """

    def __init__(
        self, config: RouterConfig, session: aiohttp.ClientSession, store: TableStore
    ) -> None:
        self.settled = asyncio.Event()
        self._session = session
        self._store = store
        self._learned: dict[Key, Models] = {}
        self._unsettled: set[Key] = set()
        self._asked: set[Key] = set()
        self._tasks: TaskSet[Key] = TaskSet()
        self.configure(config)

    def configure(self, config: RouterConfig) -> None:
        """Ask by these settings from now on."""
        self._timeout = config.health_timeout
        self._headers = _authorization(config.engine_api_key)

    def has_asked(self, engine: Service) -> bool:
        """Whether the engine's models are known, or it was asked for them at least."""
        return bool(engine.models) or _key(engine) in self._asked

    def fill(self, declared: Service) -> Service:
        """A service as it was declared -> with the models learned from it, if it names none."""
        key = _key(declared)
        if declared.models:
            self._learned.pop(key, None)
        models, models_list = self._learned.get(key, ((), ()))
        return replace(declared, models=models, models_list=models_list) if models else declared

    async def run(self) -> None:
        """Keep a task for each engine that needs one, until cancelled."""
        self._unsettled = set(self._wanted())
        self._settle()
        try:
            while True:
                table = self._store.current
                wanted = self._wanted()
                self._asked &= wanted.keys()
                self._learned = {k: found for k, found in self._learned.items() if k in wanted}
                self._tasks.keep(wanted)
                await self._store.changed(table)
        finally:
            await self._tasks.close()

    def _wanted(self) -> Mapping[Key, Job]:
        return {
            _key(engine): partial(self._learn, engine)
            for engine in self._store.current.engines
            if not engine.models or _key(engine) in self._learned
        }

    async def _learn(self, engine: Service) -> None:
        """Ask until there is an answer, and again when the engine came back or time has passed."""
        pause = FIRST_RETRY
        while True:
            models = await self._ask(engine)
            self._unsettled.discard(_key(engine))
            self._settle()
            self._asked.add(_key(engine))
            if models is not None:
                self._publish(engine, models)
                await self._back_up(engine.name, REFRESH)
                pause = FIRST_RETRY
                continue
            await self._back_up(engine.name, pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            pause = min(2 * pause, LAST_RETRY)

    def _settle(self) -> None:
        if not self._unsettled:
            self.settled.set()

    async def _ask(self, engine: Service) -> Models | None:
        """The models that the engine lists; None when it lists none."""
        reasons = []
        for path in PATHS:
            url = engine.url + path
            try:
                answer = await fetch(
                    self._session, url, self._timeout, limit=MAX_LIST_BYTES, headers=self._headers
                )
                if models := listed_models(answer.status, answer.body):
                    return models
                reasons.append(f"{path}: status {answer.status}, no models listed")
            except FetchError as error:
                reasons.append(f"{path}: {error}")
                if error.refused:
                    break
        log.debug("models not learned name=%s reason=%r", engine.name, "; ".join(reasons))
        return None

    def _publish(self, engine: Service, models: Models) -> None:
        if self._learned.get(_key(engine)) == models:
            return
        self._learned[_key(engine)] = models
        log.info("models learned name=%s models=%s", engine.name, ",".join(models[0][:8]))
        current = {service.name: service for service in self._store.current.services}
        if (service := current.get(engine.name)) and service.address == engine.address:
            ids, objects = models
            self._store.replace_service(replace(service, models=ids, models_list=objects))

    async def _back_up(self, name: str, limit: float) -> None:
        """Wait until the engine, being or going down, is up again; `limit` seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                table = self._store.current
                while True:
                    was_down = name in table.down
                    table = await self._store.changed(table)
                    if was_down and name not in table.down:
                        return


def _key(service: Service) -> Key:
    return (service.name, service.host, service.port)


def _authorization(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def listed_models(status: int, body: bytes) -> Models | None:
    """The models of an answer to a models call; None when it is not a list with any.

    Raises:
        FetchError: the body is no JSON.
    """
    if status != 200:
        return None
    content = parse_json(body)
    objects = model_objects(content.get("data")) if isinstance(content, dict) else ()
    return (tuple(dict.fromkeys(o["id"] for o in objects)), objects) if objects else None
