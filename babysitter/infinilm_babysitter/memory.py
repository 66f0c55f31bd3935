"""Waits until the memory of an ended engine is really free, where a tool can tell.

The processes are gone by then; drivers may take longer. Everything here has a limit, and a tool
that fails or hangs is as good as none.
"""

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping

from infinilm_babysitter import proctree
from infinilm_babysitter.devices import (
    MARGIN_MIB,
    TOOLS,
    Account,
    Reading,
    Tool,
    held,
    used_by_engine,
)

LOOK_EVERY = 0.5
CALL_LIMIT = 10.0
"""Seconds that one call of a tool gets; with a broken device they can hang for ever."""

log = logging.getLogger(__name__)


class DeviceMemory:
    """Accounts of every tool on the PATH."""

    def __init__(self, env: Callable[[], Mapping[str, str]], limit: float) -> None:
        self._env = env
        self._limit = limit
        self._call_limit = min(CALL_LIMIT, limit)
        tools = (tool for tool in TOOLS if limit > 0 and shutil.which(tool.program))
        self._accounts = [(tool, Account()) for tool in tools]
        self._failing: set[str] = set()
        self._gone: set[int] = set()
        if not self._accounts and limit > 0:
            names = ", ".join(tool.program for tool in TOOLS)
            log.info("device memory is not watched reason='none of %s is on the PATH'", names)

    def expect(self, pids: set[int]) -> None:
        """These belong to an engine: before the next one starts they may hold no memory."""
        if self._accounts:
            self._gone |= pids

    async def note_running(self, tree_root: int) -> None:
        """The engine below this process is ready: what it holds now is its own."""
        if not self._accounts:
            return
        try:
            tree = await asyncio.to_thread(proctree.descendants, tree_root)
        except OSError as error:  # for want of a descriptor, say
            log.warning("device memory of this engine is not known reason=%r", str(error))
            return
        pids = {process.pid for process in tree}
        self.expect(pids)
        for tool, account in self._accounts:
            if reading := await self._ask(tool):
                account.lists_ours |= not pids.isdisjoint(reading.pids)
                before, now = account.before, self._used(tool, reading)
                grown = [now[name] - before[name] for name in now.keys() & before.keys()]
                account.uses_memory = any(more > MARGIN_MIB for more in grown) if grown else None

    async def wait_until_free(self, note: Callable[[str], None]) -> None:
        """Until the last engine holds no memory any more, or the time for that is over."""
        if not self._accounts:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limit
        while reason := await self._look():
            if loop.time() >= deadline:
                log.warning("starting although device memory is not free reason=%r", reason)
                break
            note(f"waits for device memory: {reason}")
            await asyncio.sleep(LOOK_EVERY)
        self._gone.clear()

    async def _look(self) -> str:
        """What is still held; when nothing is, the state before the next engine is remembered."""
        gone = {pid for pid in self._gone if not _runs(pid)}  # else it is a stranger's by now
        for tool, account in self._accounts:
            if (reading := await self._ask(tool)) is None:
                continue
            used = self._used(tool, reading)
            if reason := held(account, reading, gone=gone, used=used):
                return f"{tool.program}: {reason}"
            account.before, account.uses_memory = used, None
        return ""

    def _used(self, tool: Tool, reading: Reading) -> dict[str, float]:
        return used_by_engine(reading.devices, tool.variables, self._env())

    async def _ask(self, tool: Tool) -> Reading | None:
        """None if the tool fails: then nothing is known."""
        try:
            async with asyncio.timeout(self._call_limit):
                outputs = [await _output(tool.program, *call) for call in tool.calls]
        except (OSError, TimeoutError, RuntimeError) as error:
            if tool.program not in self._failing:
                reason = str(error) or f"no answer within {self._call_limit:g} s"
                log.warning("device tool fails program=%s reason=%r", tool.program, reason)
            self._failing.add(tool.program)
            return None
        self._failing.discard(tool.program)
        return tool.parse(outputs)


def _runs(pid: int) -> bool:
    process = proctree.read_process(pid)
    return process is not None and proctree.is_running(process)


async def _output(program: str, *arguments: str) -> str:
    """Standard output. Raises RuntimeError if the program ends with a failure."""
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # one that hangs in the kernel is not waited for
        raise
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}")
    return output.decode(errors="replace")
