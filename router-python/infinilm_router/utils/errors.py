"""The closed set of errors that the router makes, and their one way to HTTP.

Every error has OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`, and its code
stands in the header `x-infinilm-error` too, so that it is told from an engine's own error.
"""

import json
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Code(Enum):
    """One code per kind of failure: value = (text, HTTP status, OpenAI error type)."""

    INVALID_REQUEST = ("invalid_request", 400, "invalid_request_error")
    BODY_TOO_LARGE = ("body_too_large", 413, "invalid_request_error")
    UNAUTHORIZED = ("unauthorized", 401, "authentication_error")
    PATH_NOT_ALLOWED = ("path_not_allowed", 404, "invalid_request_error")
    MODEL_NOT_FOUND = ("model_not_found", 404, "invalid_request_error")
    NO_HEALTHY_ENGINE = ("no_healthy_engine", 503, "service_unavailable_error")
    OVERLOADED = ("overloaded", 429, "rate_limit_error")
    QUEUE_TIMEOUT = ("queue_timeout", 503, "service_unavailable_error")
    CONNECT_FAILED = ("connect_failed", 503, "service_unavailable_error")
    UPSTREAM_RESET = ("upstream_reset", 502, "upstream_error")
    UPSTREAM_INVALID = ("upstream_invalid", 502, "upstream_error")
    FIRST_BYTE_TIMEOUT = ("first_byte_timeout", 504, "upstream_error")
    IDLE_TIMEOUT = ("idle_timeout", 504, "upstream_error")
    DRAINING = ("draining", 503, "service_unavailable_error")
    LOOP_DETECTED = ("loop_detected", 508, "invalid_request_error")
    INTERNAL = ("internal", 500, "internal_error")

    def __init__(self, text: str, status: int, kind: str) -> None:
        self.text = text
        self.status = status
        self.kind = kind


# How requests end, beside these, without an error of the router's: for log and counters.
CLIENT_CLOSED: Final = "client_closed"  # it left before its answer was complete
CLIENT_TIMEOUT: Final = "client_timeout"  # it took no bytes for too long
ENGINE_ERROR: Final = "engine_error"  # the engine answered 5xx, which was passed on
CLIENT_ENDS: Final = {
    CLIENT_CLOSED: "the client closed its connection",
    CLIENT_TIMEOUT: "the client took no bytes for too long",
}

# Seconds after which a client may try again; these conditions heal by themselves.
RETRY_AFTER = {
    Code.NO_HEALTHY_ENGINE: 5,
    Code.OVERLOADED: 1,
    Code.QUEUE_TIMEOUT: 1,
    Code.CONNECT_FAILED: 1,
    Code.DRAINING: 1,
}


@dataclass(frozen=True, slots=True)
class RouterError(Exception):
    """A failure with the text that the client may see.

    `status` replaces the code's usual status where HTTP has a more exact one (408, 417, 431 ...).
    `close` ends the client's connection after the answer: the request's end is not certain.
    `retry_after` (seconds) is what is known better than the code's usual one.
    """

    code: Code
    message: str
    param: str | None = None
    status: int | None = None
    close: bool = False
    retry_after: int | None = None

    @property
    def http_status(self) -> int:
        """The status of the answer."""
        return self.status or self.code.status

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The header fields that tell this error apart, `Retry-After` included."""
        fields = [(b"x-infinilm-error", self.code.text.encode())]
        if seconds := self.retry_after or RETRY_AFTER.get(self.code):
            fields.append((b"retry-after", str(seconds).encode()))
        return fields

    def body(self, request_id: str | None = None) -> bytes:
        """The JSON object in OpenAI's shape, compact, UTF-8."""
        error: dict[str, str | None] = {
            "message": self.message,
            "type": self.code.kind,
            "param": self.param,
            "code": self.code.text,
        }
        if request_id is not None:
            error["request_id"] = request_id
        return json.dumps({"error": error}, separators=(",", ":")).encode()

    def event(self, request_id: str | None = None) -> bytes:
        """The error as one server-sent event."""
        return b"data: " + self.body(request_id) + b"\n\n"
