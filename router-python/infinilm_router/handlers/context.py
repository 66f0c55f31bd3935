"""What the local endpoints read, and what they answer. All of it is in memory."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from infinilm_router.config import RouterConfig
from infinilm_router.models.catalog import ModelCatalog
from infinilm_router.router.health import HealthProber
from infinilm_router.router.load import LoadBook
from infinilm_router.router.queue import WaitingRoom
from infinilm_router.router.table import TableStore
from infinilm_router.utils.metrics import Counters

NOBODY = "No healthy services available"


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """A whole answer made by the router itself."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """The router's state as the endpoints see it; `started_at` is wall time, `clock` monotonic."""

    config: RouterConfig
    store: TableStore
    load: LoadBook
    room: WaitingRoom
    catalog: ModelCatalog
    prober: HealthProber
    counters: Counters
    connections: Callable[[], int]
    draining: Callable[[], bool]
    started_at: float
    clock: Callable[[], float] = time.monotonic

    @property
    def registry_url(self) -> str | None:
        """The registries as they were given, None without any."""
        return ",".join(self.config.registry_urls) or None


def json_answer(content: Mapping[str, object], status: int = 200) -> LocalAnswer:
    """`content` as compact JSON."""
    return LocalAnswer(status, json.dumps(content, separators=(",", ":")).encode())


def iso_time(wall: float | None = None) -> str:
    """Wall-clock time (default: now) as ISO 8601 text in UTC."""
    moment = datetime.now(UTC) if wall is None else datetime.fromtimestamp(wall, UTC)
    return moment.isoformat(timespec="milliseconds")
