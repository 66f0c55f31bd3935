"""What several reliability tests do: describe engines, send many calls, check a cut stream."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from rig.engine_script import DONE, stream_pieces
from rig.fake_engine import FakeEngine
from rig.load_client import Call, LoadClient, Outcome


def static(*engines: FakeEngine, **more: Any) -> list[dict[str, Any]]:
    """Fake engines as entries of a static service list."""
    return [
        {
            "name": engine.name,
            "host": engine.settings.host,
            "port": engine.port,
            "metadata": {"models": engine.settings.models},
            **more,
        }
        for engine in engines
    ]


def closed_loop(url: str, calls: Sequence[Call], concurrency: int) -> list[Outcome]:
    """Send all calls, `concurrency` at a time; every outcome, in the order of the calls."""

    async def go() -> list[Outcome]:
        client = LoadClient(url)
        try:
            return await client.closed_loop(calls, concurrency)
        finally:
            await client.close()

    return asyncio.run(go())


def first_chunks(count: int, model: str = "m") -> bytes:
    """The bytes of the first `count` content events of a fake stream."""
    pieces = stream_pieces({"chunks": count, "finish": False, "done": False}, model)
    return b"".join(piece.data for piece in pieces)


def cut_faults(body: bytes, *, whole: bool, chunks: int) -> list[str]:
    """Why `body` is not `chunks` whole events, one error event, and a visible end (R1)."""
    before = first_chunks(chunks)
    rest = body.removeprefix(before)
    events = [line[6:] for line in rest.split(b"\n") if line.startswith(b"data: ")]
    errors = [event for event in events if event.startswith(b'{"error"')]
    checks = {
        "chunks before the fault differ": body.startswith(before),
        "[DONE] in a cut stream": DONE not in body,
        "body ended in order": not whole,
        f"{len(errors)} error events instead of one": len(errors) == 1,
        "the error event is not last": bool(events) and events[-1:] == errors,
    }
    found = [fault for fault, right in checks.items() if not right]
    if len(errors) == 1:
        error = json.loads(errors[0])["error"]
        found += [f"error has no {key}" for key in ("message", "type", "code") if key not in error]
    return found
