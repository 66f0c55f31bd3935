"""What is told of an exchange: why an engine failed it, and the router's own fields."""

from typing import Final, NamedTuple

from infinilm_router.proxy.fields import line_ends_are_clean
from infinilm_router.proxy.heads import MALFORMED, MAX_RESPONSE_HEAD, Broken
from infinilm_router.router.engine import Outcome
from infinilm_router.router.selection import Choice
from infinilm_router.router.table import Service
from infinilm_router.utils.errors import Code, RouterError
from infinilm_router.utils.resources import is_shortage

_LATE: Final = (Code.FIRST_BYTE_TIMEOUT, Code.IDLE_TIMEOUT)


class FailedAttempt(NamedTuple):
    """An attempt that failed where the request may still succeed on another engine."""

    service: Service
    number: int
    phase: str
    error: RouterError


def connect_failed(service: Service, error: OSError | UnicodeError) -> RouterError:
    """What is told of an engine that can't be reached."""
    if isinstance(error, TimeoutError):
        reason = "connection timed out"
    elif isinstance(error, ConnectionRefusedError):
        reason = "connection refused"
    else:
        reason = f"connection failed ({error})"
    text = f"Service unavailable - {reason}: engine '{service.name}'"
    return RouterError(Code.CONNECT_FAILED, text)


def blame(error: OSError | UnicodeError) -> Outcome:
    """What a connection that failed says of the engine."""
    ours = isinstance(error, OSError) and is_shortage(error)
    return Outcome.NEUTRAL if ours else Outcome.ENGINE_FAULT


def bad_gateway(service: Service, code: Code, detail: str) -> RouterError:
    """What is told of an engine that broke an exchange."""
    late = code in _LATE
    text = "Service timeout" if late else "Bad gateway - error communicating with service"
    return RouterError(code, f"{text}: engine '{service.name}': {detail}")


def check_partial_head(data: bytes) -> None:
    """Find faults of an answer's head before it is whole.

    Raises:
        Broken: it can't become a head any more.
    """
    begun = data[:MAX_RESPONSE_HEAD]
    if not line_ends_are_clean(begun) or not b"HTTP/1.".startswith(begun[:7]):
        raise Broken(MALFORMED)
    if len(data) >= MAX_RESPONSE_HEAD:
        raise Broken(f"head larger than {MAX_RESPONSE_HEAD} bytes")


def own_fields(request_id: bytes, choice: Choice | None, attempts: int) -> bytes:
    """The router's own fields of the answer, as they stand on the wire."""
    if choice is None:
        return b"x-request-id: %b\r\n" % request_id
    return (
        b"x-request-id: %b\r\nx-infinilm-service: %b\r\n"
        b"x-infinilm-attempts: %d\r\nx-infinilm-policy: %b\r\n"
    ) % (request_id, choice.service.name_field, attempts, choice.why.encode())
