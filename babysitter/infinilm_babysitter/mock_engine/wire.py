"""JSON and server-sent events as bytes."""

import json
from typing import Any

SSE_DONE = b"data: [DONE]\n\n"


def to_json(value: Any) -> bytes:
    """Compact JSON with characters as they are, as engines send it.

    A lone surrogate, which a request may carry as an escape, goes back out as that escape.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def sse_event(value: Any) -> bytes:
    """One `data:` event."""
    return b"data: " + to_json(value) + b"\n\n"
