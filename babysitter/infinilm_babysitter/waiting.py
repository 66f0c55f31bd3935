"""Waiting with a limit."""

import asyncio
from typing import Any


async def wait_for_any(*events: asyncio.Event, within: float | None = None) -> bool:
    """Until one of the events is set; False if `within` seconds passed before (None: no limit)."""
    if any(event.is_set() for event in events):
        return True
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waiting, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        await cancel(*waiting)


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended; their outcome is of no interest."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
