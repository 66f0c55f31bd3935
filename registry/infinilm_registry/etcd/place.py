"""`etcd://h1:2379,h2:2379[/CLUSTER]`: where the members are, and which keys are ours. Pure."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from infinilm_registry.addresses import host_problem, literal_address, netloc

SCHEME = "etcd://"
_DEFAULT_PORT = 2379
_DEFAULT_CLUSTER = "default"
_CLUSTER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SERVICES, _ALIVE = "services/", "alive/"


@dataclass(frozen=True, slots=True)
class Place:
    """The members' base URLs, and the name that registries of one fleet have in common."""

    endpoints: tuple[str, ...]
    cluster: str = _DEFAULT_CLUSTER

    @classmethod
    def parse(cls, store: str) -> "Place":
        """The place that a `--store` names; ValueError with the reason if it is none."""
        members, _, cluster = store.removeprefix(SCHEME).partition("/")
        if not members or any(mark in members for mark in "?#"):
            raise ValueError("must look like etcd://HOST:2379,HOST:2379,HOST:2379")
        if "@" in members:
            raise ValueError("user names and passwords for etcd are not supported; leave them out")
        if cluster and not _CLUSTER.fullmatch(cluster):
            raise ValueError("the part after the hosts must be a name of letters, digits and ._-")
        endpoints = tuple(dict.fromkeys(_endpoint(member) for member in members.split(",")))
        return cls(endpoints, cluster or _DEFAULT_CLUSTER)

    @property
    def prefix(self) -> str:
        """What all our keys begin with."""
        return f"/infinilm/{self.cluster}/"

    def service_key(self, name: str) -> str:
        """Where a registration is kept."""
        return f"{self.prefix}{_SERVICES}{name}"

    def alive_key(self, name: str) -> str:
        """Which key a service's lease holds."""
        return f"{self.prefix}{_ALIVE}{name}"

    def named_by_service_key(self, key: str) -> str | None:
        """The name in a key of a registration; None for other keys."""
        return _rest(key, self.prefix + _SERVICES)

    def named_by_alive_key(self, key: str) -> str | None:
        """The name in a key that a lease holds; None for other keys."""
        return _rest(key, self.prefix + _ALIVE)


def _rest(key: str, beginning: str) -> str | None:
    return key.removeprefix(beginning) if key.startswith(beginning) else None


def _endpoint(member: str) -> str:
    try:
        parts = urlsplit(f"//{member.strip()}")
        host, port = parts.hostname or "", parts.port or _DEFAULT_PORT
    except ValueError:
        host, port = "", 0
    # A member may well be on loopback; only a name must be one.
    if not host or (not literal_address(host) and host_problem(host, ())):
        raise ValueError(f"{member!r} is not HOST:PORT")
    return f"http://{netloc(host, port)}"
