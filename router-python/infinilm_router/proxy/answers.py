"""Whole answers made by the router, as they stand on the wire."""

from typing import Final

from infinilm_router.handlers.context import LocalAnswer
from infinilm_router.proxy.heads import RequestHead

_REASONS: Final = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    414: b"URI Too Long",
    417: b"Expectation Failed",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
    508: b"Loop Detected",
}


def answer_bytes(head: RequestHead | None, answer: LocalAnswer, own: bytes, *, keep: bool) -> bytes:
    """The answer to the request with this head (None: it was not understood).

    `own` are further fields as they stand on the wire; `keep` = the connection lives on.
    """
    lines = [
        b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n"
        % (answer.status, _REASONS.get(answer.status, b""), answer.content_type, len(answer.body)),
        *(b"%b: %b\r\n" % field for field in answer.headers),
        own,
    ]
    if not keep:
        lines.append(b"Connection: close\r\n")
    elif head is not None and head.http_1_0:
        lines.append(b"Connection: keep-alive\r\n")
    lines.append(b"\r\n")
    if head is None or head.method != b"HEAD":
        lines.append(answer.body)
    return b"".join(lines)
