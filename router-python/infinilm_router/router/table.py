"""The service table: an immutable snapshot of all engines, with one writer and many readers."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

ENGINE_TYPE = "openai-api"
MAX_NAMED_MODELS = 10_000
MAX_CONCURRENCY = 1_000_000  # what metadata may say at most


@dataclass(frozen=True, slots=True)
class Service:
    """One entry of the registry or of a static file; immutable.

    `models` are the ids it serves, `models_list` the full OpenAI model objects where known.
    `status` is the registry's word for it ("running" is the only one that takes requests).
    `max_fails` failures in a row eject it for `fail_timeout` seconds (None: the router's default).
    """

    name: str
    host: str
    port: int
    url: str = ""
    weight: float = 1.0
    models: tuple[str, ...] = ()
    models_list: tuple[Mapping[str, Any], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: Literal["static", "registry"] = "registry"
    status: str = "running"
    backup: bool = False
    max_fails: int | None = None
    fail_timeout: float | None = None

    # What follows from the above, made once because every request needs it: where requests go
    # (host, port), the values of `Host` and `x-infinilm-service`, whether it takes requests at all
    # (babysitters never do), how many at once (None: the router's default), and what it expects in
    # place of the prefix /v1 (None: paths pass as they are).
    address: tuple[str, int] = field(init=False, repr=False, compare=False)
    host_field: bytes = field(init=False, repr=False, compare=False)
    name_field: bytes = field(init=False, repr=False, compare=False)
    is_engine: bool = field(init=False, repr=False, compare=False)
    max_concurrency: int | None = field(init=False, repr=False, compare=False)
    api_prefix: str | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fix = object.__setattr__  # the dataclass is frozen
        fix(self, "address", (self.host, self.port))
        fix(self, "host_field", self.netloc(self.port).encode("ascii", "replace"))
        fix(self, "name_field", self.name.encode("ascii", "replace"))
        fix(self, "is_engine", self.metadata.get("type") == ENGINE_TYPE)
        fix(self, "max_concurrency", _limit(self.metadata.get("max_concurrency")))
        prefix = self.metadata.get("api_prefix")
        fix(self, "api_prefix", prefix if prefix in ("", "/v1") else None)

    @property
    def health_urls(self) -> tuple[str, ...]:
        """Where to probe, in the order to try: see `router.health`."""
        override = self.metadata.get("health_url")
        if isinstance(override, str):
            return (override,)
        own = f"http://{self.netloc(self.port)}"
        return (
            f"http://{self.netloc(self.port + 1)}/health",
            f"{own}/health",
            f"{own}/v1/models",
            f"{own}/models",
        )

    def netloc(self, port: int) -> str:
        """`host:port`, with IPv6 addresses in brackets."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


def _limit(value: object) -> int | None:
    """A number of requests as metadata gives it, None for anything else."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 1 <= value <= MAX_CONCURRENCY else None


class Candidates(NamedTuple):
    """The engines of one model that the registry calls running: `known`, and what probes say.

    `up` are those whose probes are well, `preferred` those of `up` that take requests while all is
    well. `panic` is True when probes leave less than half of `known`: the fault is then more likely
    common to all of them (a network, the babysitters), and trying beats refusing.
    """

    known: tuple[Service, ...] = ()
    up: tuple[Service, ...] = ()
    preferred: Sequence[Service] = ()
    panic: bool = False


NOBODY = Candidates()


@dataclass(frozen=True)
class ServiceTable:
    """What is known of all services at one moment.

    `known` is False until a registry (or the saved last list) answered for the first time; with
    static services only it is True from the start. `down` names the services whose probes failed.
    `named` holds every model id that any engine has ever named.
    """

    services: tuple[Service, ...] = ()
    known: bool = False
    down: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()

    @cached_property
    def engines(self) -> tuple[Service, ...]:
        """All services of type openai-api, in table order."""
        return tuple(s for s in self.services if s.is_engine)

    @cached_property
    def by_model(self) -> Mapping[str, tuple[Service, ...]]:
        """Model id -> engines that serve it, up or down, in table order."""
        found: dict[str, list[Service]] = {}
        for service in self.engines:
            for model in dict.fromkeys(service.models):
                found.setdefault(model, []).append(service)
        return {model: tuple(services) for model, services in found.items()}

    def is_up(self, service: Service) -> bool:
        """True when registry and probe both say that it takes requests."""
        return service.status == "running" and service.name not in self.down

    @cached_property
    def healthy_engines(self) -> tuple[Service, ...]:
        """The engines that are up."""
        return tuple(s for s in self.engines if self.is_up(s))

    @cached_property
    def _candidates(self) -> dict[str | None, Candidates]:
        return {
            None: self._sorted_out(self.engines),
            **{model: self._sorted_out(services) for model, services in self.by_model.items()},
        }

    def _sorted_out(self, services: Sequence[Service]) -> Candidates:
        known = tuple(s for s in services if s.status == "running")
        up = tuple(s for s in known if s.name not in self.down)
        return Candidates(known, up, preferred(up), 2 * len(up) < len(known))

    def candidates(self, model: str | None) -> Candidates:
        """The engines that could serve `model`; None means any model."""
        return self._candidates.get(model, NOBODY)

    @property
    def panic(self) -> bool:
        """Whether probes leave less than half of some model's engines."""
        return any(candidates.panic for candidates in self._candidates.values())

    @cached_property
    def has_tiers(self) -> bool:
        """Whether any engine declares the type of its cache."""
        return any("cache_type" in s.metadata for s in self.engines)


def preferred(services: Sequence[Service]) -> Sequence[Service]:
    """The first group that is not empty: weighted services, backups, those of weight 0."""
    return (
        [s for s in services if s.weight > 0 and not s.backup]
        or [s for s in services if s.weight > 0]
        or services
    )


class TableStore:
    """Holds the current table. All writers run on the event loop; readers take `current` once.

    `on_change` is called with the last table and the new one.
    """

    def __init__(
        self,
        table: ServiceTable | None = None,
        on_change: Callable[[ServiceTable, ServiceTable], None] | None = None,
    ) -> None:
        self.current = table or ServiceTable()
        self._on_change = on_change
        self._changed = asyncio.Event()

    async def changed(self, seen: ServiceTable) -> ServiceTable:
        """The current table, as soon as it is another one than `seen`."""
        while self.current is seen:
            await self._changed.wait()
        return self.current

    def _publish(self, table: ServiceTable) -> None:
        last, self.current = self.current, table
        if self._on_change is not None:
            self._on_change(last, table)
        self._changed.set()
        self._changed = asyncio.Event()

    def set_services(self, services: Iterable[Service], *, known: bool = True) -> None:
        """Publish a new list of services; what probes said of those that remain is kept."""
        services = tuple(services)
        names = {service.name for service in services}
        now_named = frozenset[str]().union(*(s.models for s in services if s.is_engine))
        named = self.current.named | now_named
        if len(named) > MAX_NAMED_MODELS:
            named = now_named
        self._publish(ServiceTable(services, known, self.current.down & names, named))

    def set_down(self, name: str, *, down: bool) -> None:
        """Publish the probes' verdict on one service."""
        current = self.current.down
        changed = current | {name} if down else current - {name}
        if changed != current:
            self._publish(replace(self.current, down=changed))

    def replace_service(self, service: Service) -> None:
        """Publish a service that changed (for example its learned models); ignored when gone."""
        services = self.current.services
        if all(old.name != service.name for old in services):
            return
        changed = (service if old.name == service.name else old for old in services)
        self.set_services(changed, known=self.current.known)
