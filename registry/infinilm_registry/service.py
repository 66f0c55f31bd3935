"""What somebody registered, as an immutable value. How alive it is stands in entry.py."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from urllib.parse import urlsplit, urlunsplit

from infinilm_registry.addresses import netloc

ENGINE = "openai-api"


@dataclass(frozen=True, slots=True)
class Service:
    """One registration. `heartbeat_interval` in seconds; `metadata` is never changed in place."""

    name: str
    host: str
    port: int
    hostname: str
    url: str
    status: str
    timestamp: str
    metadata: Mapping[str, object] = field(default_factory=dict)
    weight: float = 1
    instance_id: str | None = None
    heartbeat_interval: float | None = None
    generation: int = 0

    @property
    def sender(self) -> str:
        """Whose heartbeats keep it: a babysitter and its engine carry one instance id."""
        return self.instance_id or self.name

    def as_record(self) -> dict[str, object]:
        """Everything, for the store."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> "Service":
        """The value that `as_record` gave; unknown keys are ignored, TypeError for missing ones."""
        known = {item.name for item in fields(cls)}
        # The record's checksum vouches for the types of its values.
        return cls(**{key: value for key, value in record.items() if key in known})  # type: ignore[arg-type]

    def moved_url(self, host: str, port: int) -> str:
        """This service's URL, at another address."""
        return urlunsplit(urlsplit(self.url)._replace(netloc=netloc(host, port)))

    def probe_urls(self) -> tuple[str, ...]:
        """Where its health is asked: the next one counts only where the one before is not served.

        An engine's babysitter answers for it on the next port. An engine started without one
        answers for itself, and not every engine has a health call.
        """
        if override := self.metadata.get("health_url"):
            return (str(override),)
        base = self.url.rstrip("/")
        if self.metadata.get("type") != ENGINE:
            return (f"{base}/health",)
        babysitter = f"http://{netloc(self.host, self.port + 1)}/health"
        return (babysitter, f"{base}/health", f"{base}/v1/models", f"{base}/models")


@dataclass(frozen=True, slots=True)
class Sender:
    """Who speaks for a service, as far as it says: None where it does not."""

    instance_id: str | None = None
    generation: int | None = None

    def speaks_for(self, service: Service) -> bool:
        """Whether nothing that it says of itself contradicts the registration."""
        return self.instance_id in (None, service.instance_id) and self.generation in (
            None,
            service.generation,
        )


ANYBODY = Sender()
