"""Reads an engine's output without ever letting it wait, and writes it to a rotated file.

One thread reads the pipe into a ring of fixed size, another writes the ring to disk. If the disk is
slow or full, the oldest bytes in the ring are dropped and counted; the engine does not notice.
"""

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections import deque
from io import FileIO
from pathlib import Path

from infinilm_babysitter.config import LogLimits
from infinilm_babysitter.tail import KEPT_LINES, LineCap, Tail

RING_BYTES = 1 << 20
CHUNK = 65536
REPORT_EVERY = 30.0
"""Seconds between two log lines about lost bytes."""
READ_REST = 2.0
"""Seconds to wait at the end for output that is still in the pipe or on its way to the disk."""

log = logging.getLogger(__name__)


class Ring:
    """A queue of bytes between two threads that drops its oldest chunks when it is full."""

    def __init__(self, limit: int = RING_BYTES) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._closed = False
        self.dropped = 0

    def put(self, chunk: bytes) -> None:
        """Add a chunk; never waits."""
        with self._changed:
            self._chunks.append(chunk)
            self._size += len(chunk)
            while self._size > self._limit:
                oldest = self._chunks.popleft()
                self._size -= len(oldest)
                self.dropped += len(oldest)
            self._changed.notify()

    def take(self) -> bytes | None:
        """Wait for a chunk; None once the ring is closed and empty."""
        with self._changed:
            while not self._chunks and not self._closed:
                self._changed.wait()
            if not self._chunks:
                return None
            chunk = self._chunks.popleft()
            self._size -= len(chunk)
            return chunk

    def close(self) -> None:
        """Let the taker end when it has taken everything."""
        with self._changed:
            self._closed = True
            self._changed.notify()


class RotatedFile:
    """A file that is renamed to .1, .2 ... when it is full; only its one user thread touches it."""

    def __init__(self, path: Path, limits: LogLimits) -> None:
        self._path = path
        self._limits = limits
        self._file: FileIO | None = None
        self._size = 0
        self.written = 0
        """Bytes of all data so far, those of writes that failed half-way too."""

    def write(self, data: bytes) -> None:
        """Append all of `data`. Raises OSError; the next call tries with a newly opened file."""
        try:
            file = self._open(len(data))
            rest = data
            while rest:
                count = file.write(rest)
                self._size += count
                self.written += count
                rest = rest[count:]
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; `write` would open it again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _open(self, more: int) -> FileIO:
        if self._file is not None and self._size and self._size + more > self._limits.max_bytes:
            self.close()
            self._rotate()
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(self._path, "a")
            self._size = self._file.seek(0, os.SEEK_END)
        return self._file

    def _rotate(self) -> None:
        names = [self._path, *(self._numbered(n) for n in range(1, self._limits.files + 1))]
        names[-1].unlink(missing_ok=True)
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            with contextlib.suppress(FileNotFoundError):
                newer.rename(older)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


class LogPump:
    """The output of one engine after the other, into one file."""

    def __init__(self, path: Path, limits: LogLimits) -> None:
        self.path = path
        self._file = RotatedFile(path, limits)
        self._ring = Ring()
        self._cap = LineCap()
        self._tail = Tail()
        self._earlier: tuple[str, ...] = ()
        self._unwritten = 0
        self._report_at = 0.0
        self._reported = 0
        self._reader: threading.Thread | None = None
        self._writer = threading.Thread(target=self._write, name="log-writer", daemon=True)
        self._writer.start()

    @property
    def lost_bytes(self) -> int:
        """Output that is not in the file: dropped, cut from very long lines, or not writable."""
        return self._ring.dropped + self._cap.cut + self._unwritten

    def last_lines(self) -> tuple[str, ...]:
        """The end of what the current engine has said."""
        return self._tail.lines()

    def recent_lines(self, count: int) -> tuple[str, ...]:
        """The last `count` lines, of the engine before this one too; not more than KEPT_LINES."""
        return (*self._earlier, *self._tail.lines(KEPT_LINES))[-count:]

    def attach(self) -> int:
        """Make a pipe for an engine's output; the end to write to, for the caller to close."""
        reading, writing = os.pipe()
        with contextlib.suppress(OSError):  # more room only makes stalls rarer
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, RING_BYTES)
        self._earlier = self.recent_lines(KEPT_LINES)
        self._tail.clear()
        self._reader = threading.Thread(
            target=self._read, args=(reading,), name="log-reader", daemon=True
        )
        self._reader.start()
        return writing

    def read_rest(self) -> None:
        """Wait (not for long) until what the last engine said has been read."""
        if self._reader is not None:
            self._reader.join(READ_REST)

    def close(self) -> None:
        """Write out what is left, as far as that goes quickly."""
        self.read_rest()
        self._ring.close()
        self._writer.join(READ_REST)
        self._report_losses(time.monotonic(), final=True)

    def _read(self, pipe: int) -> None:
        with contextlib.closing(FileIO(pipe, "r")) as stream:
            while data := stream.read(CHUNK):
                self._tail.feed(data)
                self._ring.put(self._cap.feed(data))

    def _write(self) -> None:
        while (chunk := self._ring.take()) is not None:
            before = self._file.written
            try:
                self._file.write(chunk)
            except OSError as error:
                self._unwritten += len(chunk) - (self._file.written - before)
                self._report_losses(time.monotonic(), str(error))
            else:
                self._report_losses(time.monotonic())
        self._file.close()

    def _report_losses(self, now: float, why: str = "", *, final: bool = False) -> None:
        lost = self.lost_bytes
        if lost > self._reported and (final or now >= self._report_at):
            log.warning("engine log incomplete file=%s lost_bytes=%d why=%r", self.path, lost, why)
            self._reported, self._report_at = lost, now + REPORT_EVERY
