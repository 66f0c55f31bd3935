"""The last lines of a stream of bytes, and a cap on the length of its lines. No input or output."""

from collections import deque

LINE_CAP = 65536
LINES = 50
"""Lines that say why an engine ended."""
KEPT_LINES = 1000
"""Lines that can be asked for."""
SHOWN_LINE = 1000
"""Characters of a line that are shown to people; the file has the whole of it."""


class Tail:
    """Remembers the last lines of what it is fed."""

    def __init__(self, lines: int = KEPT_LINES) -> None:
        self._kept = lines
        self._lines: deque[bytes] = deque(maxlen=lines)
        self._open = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes; a line may come in many pieces."""
        *complete, rest = data.split(b"\n")
        if complete:
            self._lines.append((self._open + complete[0])[:SHOWN_LINE])
            self._lines.extend(line[:SHOWN_LINE] for line in complete[1:][-self._kept :])
            self._open = b""
        self._open = (self._open + rest)[:SHOWN_LINE]

    def clear(self) -> None:
        """Forget everything, for the next engine."""
        self._lines.clear()
        self._open = b""

    def lines(self, count: int = LINES) -> tuple[str, ...]:
        """The last `count`, oldest first; bytes that are no UTF-8 become replacement characters."""
        kept = [*self._lines, *([self._open] if self._open else [])][-count:]
        return tuple(line.decode(errors="replace").rstrip("\r") for line in kept)


class LineCap:
    """Cuts lines longer than `limit` bytes and counts what it cut."""

    def __init__(self, limit: int = LINE_CAP) -> None:
        self._limit = limit
        self._length = 0
        self.cut = 0

    def feed(self, data: bytes) -> bytes:
        """The data without the bytes beyond the limit of their lines."""
        first = data.find(b"\n")
        begun = self._length + (len(data) if first < 0 else first)
        if begun <= self._limit and len(data) <= self._limit:  # nearly always: no line is too long
            self._length = begun if first < 0 else len(data) - data.rfind(b"\n") - 1
            return data
        *complete, rest = data.split(b"\n")
        kept = []
        for line in complete:
            kept.append(self._keep(line))
            self._length = 0
        kept.append(self._keep(rest))
        return b"\n".join(kept)

    def _keep(self, piece: bytes) -> bytes:
        kept = piece[: max(0, self._limit - self._length)]
        self.cut += len(piece) - len(kept)
        self._length += len(kept)
        return kept
