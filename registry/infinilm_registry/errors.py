"""The closed set of refusals, each with status, body and headers, and the faults they list."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

MISSING = "is required"
_LONGEST_ECHO = 200


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with an input: which key, which value, why; `where` names its source."""

    key: str
    value: object
    reason: str
    where: str = "request"

    @property
    def summary(self) -> str:
        """The one-line text that answers carry as `error`."""
        if self.reason == MISSING:
            return f"Missing required field: {self.key}"
        return f"Invalid value for {self.key}: {self.reason}"

    def as_json(self) -> dict[str, object]:
        """`{key, value, reason}`; a long value is cut: no answer grows with its request."""
        shown = self.value
        if len(repr(shown)) > _LONGEST_ECHO:
            shown = repr(shown)[:_LONGEST_ECHO] + "..."
        return {"key": self.key, "value": shown, "reason": self.reason}


class RegistryError(Exception):
    """A request that the registry refuses; the subclass says with which status."""

    status: ClassVar[int] = 500

    def body(self) -> dict[str, object]:
        """The JSON answer."""
        return {"error": str(self)}

    def headers(self) -> dict[str, str]:
        """Headers that go with the answer."""
        return {}


class InvalidRequestError(RegistryError):
    """The request breaks the contract; carries every fault, not just the first."""

    status = 400

    def __init__(self, faults: Sequence[Fault], message: str | None = None) -> None:
        super().__init__(message or faults[0].summary)
        self.faults = tuple(faults)

    def body(self) -> dict[str, object]:
        """`error` is the first fault's text, `errors` lists all of them."""
        return {"error": str(self), "errors": [fault.as_json() for fault in self.faults]}


class UnauthorizedError(RegistryError):
    """A write without the registry's token."""

    status = 401

    def __init__(self) -> None:
        super().__init__("This call needs the registry token: send Authorization: Bearer TOKEN")

    def headers(self) -> dict[str, str]:
        """Names the scheme, as RFC 9110 asks of a 401."""
        return {"WWW-Authenticate": "Bearer"}


class ForbiddenError(RegistryError):
    """A write from a place that may not write."""

    status = 403


class NotRegisteredError(RegistryError):
    """No service of that name; a heartbeat's sender is told to register again."""

    status = 404

    def __init__(self, name: str, *, re_register: bool = False) -> None:
        super().__init__(f"Service '{name}' not found")
        self.re_register = re_register

    def body(self) -> dict[str, object]:
        """Adds `re_register: true` for heartbeats."""
        return {"error": str(self), **({"re_register": True} if self.re_register else {})}


class BodyTimeoutError(RegistryError):
    """A request whose body does not arrive."""

    status = 408


class InstanceMismatchError(RegistryError):
    """The name belongs to another process than the one that speaks."""

    status = 409

    def __init__(self, name: str, generation: int) -> None:
        super().__init__(
            f"Service '{name}' was registered by another instance or once more "
            f"(generation {generation}); nothing was changed"
        )
        self.generation = generation

    def body(self) -> dict[str, object]:
        """Adds the generation that holds the name now."""
        return {"error": str(self), "generation": self.generation}


class EncodedBodyError(RegistryError):
    """A compressed body: never inflated, so that a small request cannot become a large one."""

    status = 415


class BusyError(RegistryError):
    """A refusal that passes: the sender may try again after `retry_after` seconds."""

    status = 503

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, at least one."""
        return {"Retry-After": str(max(1, round(self.retry_after)))}


class WriteLimitError(BusyError):
    """One client writes faster than the limit."""

    status = 429


class RegistryFullError(BusyError):
    """No room for another name."""


class StoreError(BusyError):
    """The change could not be put on disk; it was not made."""
