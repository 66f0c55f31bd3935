"""The two routers side by side, each with an engine of its own on one event loop."""

import asyncio
import json
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from differential.engine import Engine
from differential.exchange import Exchange, Outcome, differences, run_exchange
from rig.processes import ROOT, Program, Programs, free_port
from rig.routers import ONE_POOL, flag_list, router_argv

T = TypeVar("T")

BUILD = "build it first: cd router-rust && cargo build --release --locked"
LIMIT = 0.25  # seconds: all of the routers' patience, so that unfinished things end soon
FLAGS: dict[str, Any] = {
    "host": "127.0.0.1",
    "router-port": 0,
    "state-dir": "none",
    "access-log": "off",
    "max-errors": 0,
    "health-interval": 3600,
    "health-rise": 1,
    "head-timeout": LIMIT,
    "body-timeout": LIMIT,
    "first-byte-timeout": LIMIT,
    "response-timeout": LIMIT,
    "idle-timeout": LIMIT,
    "sse-ping-interval": LIMIT * 0.6,
    "max-body-bytes": 400_000,
}


def argv_of(router: str) -> list[str]:
    """The command of a router; an AssertionError says how to get it."""
    try:
        return router_argv(router)
    except FileNotFoundError as error:
        raise AssertionError(f"{error}; {BUILD}") from None


@dataclass
class Side:
    """A router, its engine, its address."""

    name: str
    engine: Engine
    program: Program
    url: str


@dataclass
class Pair:
    """Both sides, and what differed once and then not again."""

    sides: list[Side]
    loop: asyncio.AbstractEventLoop
    unsteady: list[str] = field(default_factory=list)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def compare(self, exchange: Exchange) -> list[str]:
        """What differs. A difference counts when it is there three times, each with more time."""
        found = differences(*self.outcomes(exchange, 0.01))
        for settle in (0.1, 0.3) if found else ():
            again = differences(*self.outcomes(exchange, settle))
            if not again:
                self.unsteady.append(found[0][:300])
                return []
            found = again
        return found

    def outcomes(self, exchange: Exchange, settle: float) -> tuple[Outcome, Outcome]:
        """What came of the exchange on the first side and on the second."""

        async def both() -> tuple[Outcome, Outcome]:
            first, second = (
                run_exchange(side.url, side.engine, exchange, settle) for side in self.sides
            )
            result = await asyncio.gather(first, second)
            if any(script.end != "keep" for script in exchange.scripts):
                await asyncio.sleep(0.01)  # both have seen the engine's end before they go on
            return result

        for side in self.sides:
            assert side.program.process.poll() is None, f"{side.name} died:\n{side.program.output}"
        return self.call(both())

    def close(self) -> None:
        async def end() -> None:
            for side in self.sides:
                await side.engine.close()

        self.call(end())
        self.loop.close()


def start_pair(run: Programs, folder: Path) -> Pair:
    """Start both routers; returns when both have found their engine healthy."""
    commands = {name: argv_of(name) for name in ("python", "rust")}
    loop = asyncio.new_event_loop()
    sides = []
    for name, argv in commands.items():
        engine = Engine()
        loop.run_until_complete(engine.listen(free_port()))
        program = run.start(*argv, *_words(name, engine, folder), cwd=ROOT)
        sides.append(Side(name, engine, program, program.wait_listening()))
    pair = Pair(sides, loop)
    pair.call(_healthy(sides))
    return pair


def _words(name: str, engine: Engine, folder: Path) -> list[str]:
    path = folder / f"{name}.json"
    own = f"http://127.0.0.1:{engine.port}/health"
    metadata = {"models": ["m", "\u00e9"], "health_url": own}
    entry = {"name": "e", "host": "127.0.0.1", "port": engine.port, "metadata": metadata}
    path.write_text(json.dumps([entry]))
    return flag_list({**FLAGS, "static-services": path, **ONE_POOL[name]})


async def _healthy(sides: list[Side]) -> None:
    deadline = time.monotonic() + 15
    ask = Exchange((b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n",), ("GET",))
    for side in sides:
        while b'"1/1"' not in (await run_exchange(side.url, side.engine, ask, 0)).answers[0].body:
            assert time.monotonic() < deadline, f"not healthy: {side.program.output}"
            await asyncio.sleep(0.02)
