"""What a fake engine does with one request: a JSON script, checked and turned into pieces to send.

delay      seconds before the head, or "held": until the engine is told to go on (`release`)
status     default 200
headers    [["Name", "value"], ...] or {"Name": "value"}
body       text;  or  json  any value;  or  base64;  or  size  N patterned bytes
gzip       true: the body is compressed and Content-Encoding says so
pieces     [text | {"text" | "base64" | "size", "delay"}, ...]  in this order; delay as above
stream     {"chunks", "interval", "size", "finish", "done"}: OpenAI events for the asked model
framing    "length" | "chunked" | "close" | "none" (default: chunked for pieces, else length)
trailers   [["Name", "value"], ...] after the last chunk
share      probability that this script is followed (default 1); else the engine answers plainly
die        {"at": "head" | N, "how": rst|fin|clean|partial|kill|stall}: fault after N whole pieces
raw        text (Latin-1) or list of pieces: the whole answer as it stands, then the end
close      true: end the connection after the answer
keep       true: with raw, keep the connection open
"""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rig.wire import Headers

Json = Mapping[str, Any]
Delay = float | Literal["held"]
How = Literal["rst", "fin", "clean", "partial", "kill", "stall"]
KEYS = frozenset(
    {"delay", "status", "headers", "body", "json", "base64", "size", "gzip", "pieces", "stream"}
    | {"framing", "trailers", "die", "raw", "close", "keep", "share"}
)


@dataclass(frozen=True)
class Piece:
    """Bytes that go out in one write, `delay` seconds after the piece before."""

    data: bytes
    delay: Delay = 0.0


@dataclass(frozen=True)
class Die:
    """A fault after `at` whole pieces (None: before the response head)."""

    at: int | None
    how: How


@dataclass(frozen=True)
class Script:
    """One checked script."""

    delay: Delay
    status: int
    headers: Headers
    pieces: tuple[Piece, ...]
    framing: str
    trailers: Headers
    die: Die | None
    raw: bool
    close: bool


BLOCK = bytes((i * 7 + i // 256) % 256 for i in range(65_521))


def pattern(size: int) -> bytes:
    """`size` bytes of all values in an order that does not repeat every 256 bytes."""
    return (BLOCK * (size // len(BLOCK) + 1))[:size]


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def stream_event(model: str, delta: Json, finish: str | None = None, *, chat: bool = True) -> bytes:
    """One chunk of a chat or completions stream."""
    choice: dict[str, object] = {"index": 0, "finish_reason": finish}
    choice |= {"delta": delta} if chat else {"text": delta.get("content", "")}
    name = "chat.completion.chunk" if chat else "text_completion"
    return event(
        {"id": "fake-1", "object": name, "created": 1, "model": model, "choices": [choice]}
    )


def stream_pieces(options: Json, model: str, *, chat: bool = True) -> tuple[Piece, ...]:
    """The writes of an OpenAI stream: `chunks` contents, then finish_reason and `[DONE]`."""
    count, interval = int(options.get("chunks", 5)), float(options.get("interval", 0.0))
    size = int(options.get("size", 8))
    data = [
        stream_event(model, {"content": f"{index} ".ljust(size, "x")}, chat=chat)
        for index in range(count)
    ]
    if options.get("finish", True):
        data.append(stream_event(model, {}, "stop", chat=chat))
    if options.get("done", True):
        data.append(DONE)
    return tuple(Piece(piece, interval if index else 0.0) for index, piece in enumerate(data))


def parse_script(document: Json, body: Json, path: str) -> Script:
    """Check a script; `body` is the request's JSON (or {}), `path` decides the default answer."""
    if unknown := set(document) - KEYS:
        raise ValueError(f"unknown script keys {sorted(unknown)}; known: {sorted(KEYS)}")
    pieces, kind, streaming = _pieces(document, body, path)
    headers = _pairs(document.get("headers", ()))
    if kind and not any(name.lower() == "content-type" for name, _ in headers):
        headers = (("Content-Type", kind), *headers)
    if document.get("gzip"):
        pieces = (Piece(gzip.compress(b"".join(piece.data for piece in pieces), mtime=0)),)
        headers = (*headers, ("Content-Encoding", "gzip"))
    return Script(
        delay=document.get("delay", 0.0),
        status=int(document.get("status", 200)),
        headers=headers,
        pieces=pieces,
        framing=str(document.get("framing", "chunked" if streaming else "length")),
        trailers=_pairs(document.get("trailers", ())),
        die=_die(document.get("die")),
        raw="raw" in document,
        close=bool(document.get("close", "raw" in document and not document.get("keep"))),
    )


def _pairs(value: Json | Sequence[Sequence[str]]) -> Headers:
    items = value.items() if isinstance(value, Mapping) else value
    return tuple((str(name), str(text)) for name, text in items)


def _die(value: Json | None) -> Die | None:
    if value is None:
        return None
    return Die(None if value["at"] == "head" else int(value["at"]), value["how"])


def _data(value: str | Json, encoding: str = "utf-8") -> bytes:
    if isinstance(value, str):
        return value.encode(encoding)
    if "base64" in value:
        return base64.b64decode(value["base64"])
    return pattern(int(value["size"])) if "size" in value else value["text"].encode(encoding)


def _piece_list(values: Sequence[str | Json], encoding: str = "utf-8") -> tuple[Piece, ...]:
    return tuple(
        Piece(_data(value, encoding), 0.0 if isinstance(value, str) else value.get("delay", 0.0))
        for value in values
    )


def _pieces(document: Json, body: Json, path: str) -> tuple[tuple[Piece, ...], str | None, bool]:
    """What to send, its content type (None: say none), and whether it is a stream."""
    if "raw" in document:
        raw = document["raw"]
        return _piece_list([raw] if isinstance(raw, str) else raw, "latin-1"), None, False
    if "pieces" in document:
        return _piece_list(document["pieces"]), "text/event-stream", True
    asked = body.get("stream") is True and int(document.get("status", 200)) < 300
    if "stream" in document or (asked and not {"json", "body", "base64", "size"} & set(document)):
        options, model = document.get("stream", {}), str(body.get("model"))
        pieces = stream_pieces(options, model, chat=path.endswith("/chat/completions"))
        return pieces, "text/event-stream", True
    data, kind = _single(document, body, path)
    return (Piece(data),), kind, False


def _single(document: Json, body: Json, path: str) -> tuple[bytes, str]:
    """A body that goes out at once, and its content type."""
    if "body" in document:
        return document["body"].encode(), "text/plain"
    if "base64" in document or "size" in document:
        return _data(document), "application/octet-stream"
    value = document["json"] if "json" in document else default_answer(body, path, document)
    return json.dumps(value).encode(), "application/json"


def default_answer(body: Json, path: str, document: Json) -> Json:
    """What an engine says to `path` when the script does not put words into its mouth."""
    status, model = int(document.get("status", 200)), body.get("model")
    if status >= 400:
        return {"error": {"message": f"engine says {status}", "type": "engine", "code": status}}
    if path.endswith("/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]
        return {"object": "list", "model": model, "data": data}
    if path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": "hello from a fake engine"}
        choice: Json = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        name = "chat.completion"
        return {
            "id": "fake-1",
            "object": name,
            "created": 1,
            "model": model,
            "choices": [choice],
            "usage": usage,
        }
    if path.endswith("/completions"):
        choice = {"index": 0, "text": "hello", "finish_reason": "stop"}
        return {
            "id": "fake-1",
            "object": "text_completion",
            "created": 1,
            "model": model,
            "choices": [choice],
        }
    return {"path": path, "model": model}


def json_body(body: bytes) -> Json:
    """The request's JSON object, or {} when it is something else."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
