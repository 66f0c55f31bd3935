"""What an engine does to its machine: a worker that will not end, a flood of log lines."""

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

BLOCK = 1 << 16


def fork_worker(*, with_child: bool = False) -> int:
    """Fork what leaves our session and ignores SIGTERM, as some GPU workers do; its pid."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if with_child:
            os.fork()
        os.write(tell, b"1")
        while True:
            signal.pause()
    for _ in range(1 + with_child):
        os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    return pid


def flood(plan: Mapping[str, Any]) -> dict[str, float]:
    """Write `bytes` of `text` to both output streams, `rate` bytes a second at most.

    How many were written, and how many seconds the longest single write and all took.
    """
    block = (plan["text"] * (BLOCK // len(plan["text"]) + 1)).encode("latin-1")[:BLOCK]
    started, longest, written = time.monotonic(), 0.0, 0
    while written < plan["bytes"]:
        piece = block[: plan["bytes"] - written]
        before = time.monotonic()
        os.write(1 + written // BLOCK % 2, piece)
        longest = max(longest, time.monotonic() - before)
        written += len(piece)
        time.sleep(max(0.0, started + written / plan["rate"] - time.monotonic()))
    return {"bytes": written, "longest": longest, "seconds": time.monotonic() - started}
