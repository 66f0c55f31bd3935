"""The last head of a connection: the next one is mostly the same."""

import re
from collections.abc import Callable
from typing import Generic, TypeVar

from infinilm_router.proxy.heads import RequestHead, ResponseHead

_LENGTH_FIELD = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)
Head = TypeVar("Head", RequestHead, ResponseHead)


class HeadMemo(Generic[Head]):
    """Parses the heads of one connection, and remembers the last one.

    The heads that follow each other on a connection mostly differ in their Content-Length alone.
    Such a head has the same meaning as the last one but for that number, and comparing two byte
    strings is a tenth of the work of parsing one.
    """

    __slots__ = ("_after", "_before", "_data", "_found", "_parse")

    def __init__(self, parse: Callable[[bytes], Head]) -> None:
        self._parse: Callable[[bytes], Head] = parse
        self._data = b""
        self._found: tuple[Head, int | None]
        self._before = b""  # up to the number that Content-Length is; empty: there is none
        self._after = b""

    def read(self, data: bytes) -> tuple[Head, int | None]:
        """The head that `data` is, and the length that it announces for the body.

        Raises:
            RouterError, Broken: as `parse_request_head` and `parse_response_head` do.
        """
        if data == self._data:
            return self._found
        before = self._before
        if before and data.startswith(before) and data.endswith(self._after):
            digits = data[len(before) : len(data) - len(self._after)]
            if digits.isdigit() and len(digits) <= 18:
                self._data = data
                self._found = found = self._found[0], int(digits)
                return found
        head = self._parse(data)
        length = None if head.content_length is None else int(head.content_length)
        self._remember(head, length, data)
        return head, length

    def _remember(self, head: Head, length: int | None, data: bytes) -> None:
        self._data, self._found, self._before = data, (head, length), b""
        if length is not None and (field := _LENGTH_FIELD.search(data)):
            self._before, self._after = data[: field.start(1)], data[field.end(1) :]
