"""One request of a case as bytes, and its answer against the case's expectation."""

import base64
import json
import re
import time
from dataclasses import dataclass
from typing import Any

from rig.engine_script import DONE, pattern, stream_pieces
from rig.raw_client import RawClient, Response, request_bytes
from rig.wire import Headers, WireError, chunk
from runner.cases import Json
from runner.match import differences, header_differences, order_differences

INFERENCE = "/v1/chat/completions"


@dataclass(frozen=True)
class Answer:
    """What came back: an answer, or why there is none, and how long it took (seconds)."""

    response: Response | None
    fault: str
    seconds: float


def body_of(request: Json) -> bytes:
    """The body bytes that a request asks for, before any transfer coding."""
    if "json" in request:
        return json.dumps(request["json"]).encode()
    if "base64" in request:
        return base64.b64decode(request["base64"])
    if "size" in request:
        # Blanks behind a JSON object keep it one, so that sizes can be asked for with a model.
        return b'{"model":"m"}'.ljust(int(request["size"]))
    return str(request.get("body", "")).encode()


def wire_of(request: Json) -> bytes:
    """The bytes of one request: as written in `raw`, or built from its parts."""
    if "raw" in request:
        return str(request["raw"]).encode("latin-1")
    pairs = [(str(name), str(value)) for name, value in request.get("headers", [])]
    if "script" in request:
        pairs.append(("x-fake-script", json.dumps(request["script"])))
    method = request.get("method", "POST" if _has_body(request) else "GET")
    body = body_of(request)
    if "chunks" in request:
        pairs.append(("Transfer-Encoding", "chunked"))
        body = b"".join(chunk(piece.encode()) for piece in request["chunks"]) + b"0\r\n\r\n"
    headers: Headers = tuple(pairs)
    target = request.get("target", INFERENCE)
    version = request.get("version", "HTTP/1.1")
    return request_bytes(method, target, headers, body, version)


def _has_body(request: Json) -> bool:
    return bool({"json", "base64", "size", "body", "chunks"} & set(request))


def method_of(request: Json) -> str:
    """The method that decides how the answer is framed."""
    return wire_of(request).lstrip(b"\r\n").split(b" ", 1)[0].decode("latin-1")


def read_answer(client: RawClient, request: Json) -> Answer:
    """Read the answer to `request`; a missing or unreadable one becomes a fault."""
    started = time.monotonic()
    try:
        response, fault = client.read(method_of(request)), ""
    except (OSError, WireError) as error:
        response, fault = None, f"{type(error).__name__}: {error}"
    return Answer(response, fault, time.monotonic() - started)


def answer_differences(expect: Json, answer: Answer) -> list[str]:
    """Why an answer is not the expected one."""
    if answer.response is None:
        return [] if expect.get("none") else [answer.fault]
    if expect.get("none"):
        return [f"an answer came: {answer.response.head.start}"]
    found = _head(expect, answer.response) + _body(expect, answer.response)
    if found:
        found.append(f"body: {answer.response.body[:400]!r}")
    return found + _time(expect, answer.seconds)


def _head(expect: Json, response: Response) -> list[str]:
    found = []
    if "status" in expect:
        found += differences(expect["status"], response.status, "status")
    found += header_differences(expect.get("headers", {}), response.headers)
    if "order" in expect:
        found += order_differences(expect["order"], response.headers)
    if "chunked" in expect:
        found += differences(expect["chunked"], response.chunked, "chunked")
    if "error" in expect:
        found += header_differences({"x-infinilm-error": expect["error"]}, response.headers)
        found += differences(error_shape(expect["error"]), _json(response.body))
    return found


def error_shape(code: str) -> dict[str, Any]:
    """The JSON of an error that the router makes itself."""
    text, param = {"$matches": r"\S"}, {"$any": True}
    return {"error": {"message": text, "type": text, "param": param, "code": code}}


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return f"no JSON: {body[:200]!r}"


def _body(expect: Json, response: Response) -> list[str]:
    whole = "stream_error" not in expect and expect.get("whole", True)
    found = differences(whole, response.whole, "whole")
    if "json" in expect:
        found += differences(expect["json"], _json(response.body))
    if "body" in expect and response.body != expect["body"].encode():
        found.append(f"body is not {expect['body']!r}")
    for line in expect.get("lines", ()):
        if not re.search(f"^(?:{line})$", response.body.decode(), re.MULTILINE):
            found.append(f"no line of the body matches {line!r}")
    if "pattern" in expect and response.body != pattern(expect["pattern"]):
        found.append(f"body of {len(response.body)} bytes is not the expected one")
    if "base64" in expect and response.body != base64.b64decode(expect["base64"]):
        found.append("body differs from the expected bytes")
    if "events" in expect:
        found += differences(expect["events"], [_event(data) for data in events(response.body)])
    return found + _stream(expect, response)


def events(body: bytes) -> list[bytes]:
    """The data of every event, comments left out."""
    lines = body.split(b"\n")
    return [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]


def _event(data: bytes) -> Any:
    return data.decode() if data == b"[DONE]" else _json(data)


def _stream(expect: Json, response: Response) -> list[str]:
    """Exactly a fake `stream`, or its first N `contents` and then a `stream_error`."""
    body, found = response.body, []
    if "comments" in expect:
        count = body.count(b"\n:") + body.startswith(b":")
        found += differences(True, count >= expect["comments"], f"{count} comments, enough")
        body = b"\n".join(line for line in body.split(b"\n\n") if not line.startswith(b":"))
    if "stream" in expect:
        whole = b"".join(piece.data for piece in stream_pieces(expect["stream"], "m"))
        found += [] if response.body == whole else ["the stream is not byte for byte the engine's"]
    if "contents" in expect:
        pieces = stream_pieces({"chunks": expect["contents"], "finish": False, "done": False}, "m")
        sent = b"".join(piece.data for piece in pieces)
        found += [] if body.startswith(sent) else [f"not {expect['contents']} whole events first"]
    if "stream_error" in expect:
        found += _cut(expect["stream_error"], response)
    return found


def _cut(code: str, response: Response) -> list[str]:
    """A cut stream: one error event at its end, alone, no [DONE], no end of the body."""
    found = [] if DONE not in response.body else ["[DONE] in a cut stream"]
    errors = [event for event in events(response.body) if b'"error"' in event]
    if len(errors) != 1 or not response.body.endswith(b"data: " + errors[0] + b"\n\n"):
        return [*found, f"{len(errors)} error events at the end instead of one"]
    return found + differences(error_shape(code), _json(errors[0]))


def _time(expect: Json, seconds: float) -> list[str]:
    low, high = expect.get("seconds", [0, 60])
    return [] if low <= seconds <= high else [f"took {seconds:.2f} s, not {low} to {high} s"]
