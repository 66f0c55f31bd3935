"""R43: streams and a random fault now and then, for minutes or days; every error must be explained.

    PYTHONPATH=tests python tests/slow/soak.py --minutes 10 --router rust [--seed 1]

Runs a registry, a router and three fake engines. Prints a summary as JSON; the exit code is 1 when
something is not as promised.
"""

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from rig.engine_process import EngineProcess, engine_processes
from rig.load_client import Call, Outcome, chat_call
from rig.processes import Programs, programs, wait_until
from rig.raw_client import RawClient, request_bytes
from rig.routers import Router, write_static
from rig.system import Registry
from rig.traffic import Traffic, faults, served_by

RATE = 20
LINGERS = 3.0  # seconds after its end in which a fault may still explain an error
MORE_DESCRIPTORS = 10  # may be open after the load than before it
QUIET = 5.0  # seconds after the load; idle connections to engines are kept for 3
STREAM = {"stream": {"chunks": 10, "interval": 0.05}}
# How an engine treats half of its requests for a while (see rig.engine_script).
SCRIPTS: dict[str, dict[str, object]] = {
    "resets": {**STREAM, "die": {"at": 5, "how": "rst"}},
    "cuts": {**STREAM, "die": {"at": 5, "how": "fin"}},
    "cuts inside a chunk": {**STREAM, "die": {"at": 5, "how": "partial"}},
    "ends without [DONE]": {"stream": {"chunks": 5, "finish": False, "done": False}},
    "stops in the middle": {**STREAM, "die": {"at": 5, "how": "stall"}},
    "does not answer": {"die": {"at": "head", "how": "stall"}},
    "answers late": {**STREAM, "delay": 1.0},
    "answers 500": {"status": 500},
    "answers 503": {"status": 503},
    "is busy": {"status": 429, "headers": {"Retry-After": "1"}},
    "answers what is no HTTP": {"raw": "HTTP/1.1 200\nOK\n\n"},
}


@dataclass
class Fault:
    """What was done, and when (seconds on the monotonic clock)."""

    what: str
    began: float
    ended: float = 0.0


@dataclass
class Summary:
    """What a soak has found."""

    router: str
    seconds: float
    calls: int = 0
    ok: int = 0
    explained: int = 0
    unexplained: list[str] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    memory_mb_per_minute: float = 0.0
    descriptors: list[int] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    in_flight: int = 0
    exception_lines: list[str] = field(default_factory=list)
    idle_cpu: float = 0.0

    def wrong(self) -> list[str]:
        """What is not as promised; memory and rest count from two minutes on."""
        found = self.unexplained + self.exception_lines
        if self.seconds >= 120 and self.memory_mb_per_minute > 1:
            found.append(f"memory grows by {self.memory_mb_per_minute:.2f} MB a minute")
        if self.seconds >= 120 and self.idle_cpu > 0.02:
            found.append(f"{self.idle_cpu:.1%} of a core while nothing happens")
        if self.descriptors[1] > self.descriptors[0] + MORE_DESCRIPTORS:
            found.append(f"descriptors {self.descriptors}")
        if self.tasks[1] > self.tasks[0] + 10:
            found.append(f"threads {self.tasks}")
        if self.in_flight:
            found.append(f"{self.in_flight} in flight at the end")
        return found


class Soak:
    """The running system; each fault is a method that ends what it began.

    Its router probes each engine, and polls the registry, once in `asks_every` seconds.
    """

    def __init__(
        self, run: Programs, folder: Path, name: str, seed: int, asks_every: float
    ) -> None:
        self._run = run
        self._random = random.Random(seed)
        self.stop = threading.Event()
        self.registry = Registry(run)
        self.engines = engine_processes(run, 3)
        entries = [
            engine.static(metadata={"models": ["m"]}, fail_timeout=1) for engine in self.engines
        ]
        flags = {
            "static-services": write_static(folder / "static.json", entries),
            "registry-url": self.registry.url,
            "state-dir": folder,
            "access-log": "errors",
            "first-byte-timeout": 2,
            "idle-timeout": 2,
            "health-interval": asks_every,
            "registry-sync-interval": asks_every,
        }
        self.router = Router(run, name, flags)
        self.router.wait_healthy("3/3")
        for engine in self.engines:
            engine.apply(records_kept=10)
        self.done: list[Fault] = []
        self._faults: dict[str, Callable[[int], None]] = {
            "an engine is killed": self._kill,
            "an engine is stopped for a second": self._pause,
            "an engine says that it is not well": self._refuse,
            "the registry is killed": self._registry_gone,
            "clients leave": self._clients_leave,
            **{f"an engine {what}": partial(self._follow, what) for what in SCRIPTS},
        }
        self._to_come: list[str] = []  # of this round: all come before one comes again

    def one_fault(self) -> None:
        """A random fault, from its beginning to its end."""
        if not self._to_come:
            self._to_come = [*self._faults]
            self._random.shuffle(self._to_come)
        what = self._to_come.pop()
        fault = Fault(what, time.monotonic())
        self.done.append(fault)
        self._faults[what](self._random.randrange(3))
        fault.ended = time.monotonic()
        self.router.wait_healthy("3/3")

    def _kill(self, number: int) -> None:
        dead = self.engines[number]
        dead.program.kill()
        dead.close()
        self.stop.wait(1)
        again = EngineProcess(self._run, dead.name, ["m"], dead.port).wait()
        again.apply(records_kept=10)
        self.engines[number] = again

    def _pause(self, number: int) -> None:
        self.engines[number].program.signal(signal.SIGSTOP)
        self.stop.wait(1)
        self.engines[number].program.signal(signal.SIGCONT)

    def _refuse(self, number: int) -> None:
        self.engines[number].apply(health=503)
        self.stop.wait(1)
        self.engines[number].apply(health=200)

    def _follow(self, what: str, number: int) -> None:
        self.engines[number].apply(script={**SCRIPTS[what], "share": 0.5})
        self.stop.wait(1)
        self.engines[number].apply(script=STREAM)

    def _clients_leave(self, _: int) -> None:
        asked = call(0)
        wire = request_bytes(asked.method, asked.target, asked.headers, asked.body)
        for _ in range(20):
            with RawClient(self.router.url) as client:
                client.send(wire)
                client.read_some()
                client.reset()

    def _registry_gone(self, _: int) -> None:
        self.registry.program.kill()
        self.stop.wait(1)
        self.registry.start()

    def explains(self, outcome: Outcome) -> bool:
        """Whether it says what went wrong, and a fault was under way while the call was."""
        if outcome.kind == "unexplained" and not _is_the_engines(outcome):
            return False
        ended = outcome.due + outcome.ended
        return any(f.began <= ended and outcome.due <= f.ended + LINGERS for f in self.done)

    def close(self) -> None:
        for engine in self.engines:
            with contextlib.suppress(OSError):
                engine.close()


def _is_the_engines(outcome: Outcome) -> bool:
    """Whether it is an engine's own error, whole, passed on as it should be."""
    return outcome.whole and outcome.status >= 400 and served_by(outcome) is not None


def call(_: int) -> Call:
    return chat_call(stream=True)


def slope(samples: list[tuple[float, int]]) -> float:
    """MB a minute over the second half of the samples (least squares)."""
    late = samples[len(samples) // 2 :]
    mean_t = sum(t for t, _ in late) / len(late)
    mean_m = sum(m for _, m in late) / len(late)
    spread = sum((t - mean_t) ** 2 for t, _ in late) or 1.0
    return sum((t - mean_t) * (m - mean_m) for t, m in late) / spread * 60 / 1e6


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def soak(run: Programs, folder: Path, name: str, minutes: float, seed: int = 1) -> Summary:
    """Run it; see `Summary.wrong`."""
    seconds = minutes * 60
    made = Soak(run, folder, name, seed, asks_every=0.1 if seconds < 120 else 1.0)
    try:
        return _run(made, seconds)
    finally:
        made.close()


def _run(made: Soak, seconds: float) -> Summary:
    router = made.router
    for engine in made.engines:
        engine.apply(script=STREAM)
    every = min(20.0, max(1.0, seconds / 10))
    summary = Summary(router.name, seconds)
    summary.descriptors.append(router.descriptors())
    summary.tasks.append(threads(router.program.pid))
    samples: list[tuple[float, int]] = []
    end = time.monotonic() + seconds
    with Traffic(router.url, RATE, call) as traffic:
        while time.monotonic() < end:
            made.stop.wait(every)
            made.one_fault()
            samples.append((time.monotonic(), router.memory()))
        outcomes = traffic.end()
    cpu = router.cpu()
    made.stop.wait(QUIET)
    summary.idle_cpu = (router.cpu() - cpu) / QUIET

    def are_back() -> bool:
        summary.descriptors[1:] = [router.descriptors()]
        return summary.descriptors[1] <= summary.descriptors[0] + MORE_DESCRIPTORS

    with contextlib.suppress(AssertionError):  # one look may fall into a round of probes
        wait_until(are_back, 10, every=0.2)
    summary.tasks.append(threads(router.program.pid))
    summary.in_flight = router.in_flight()
    _judge(summary, made, outcomes)
    summary.memory_mb_per_minute = slope(samples)
    return summary


def _judge(summary: Summary, made: Soak, outcomes: list[Outcome]) -> None:
    bad = [outcome for outcome in outcomes if outcome.kind != "ok"]
    unexplained = [outcome for outcome in bad if not made.explains(outcome)]
    summary.calls, summary.ok = len(outcomes), len(outcomes) - len(bad)
    summary.explained = len(bad) - len(unexplained)
    summary.unexplained = faults(unexplained)
    for fault in made.done:
        summary.faults[fault.what] = summary.faults.get(fault.what, 0) + 1
    summary.exception_lines = [
        line for line in made.router.program.lines if "Traceback" in line or "panicked" in line
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--router", choices=["python", "rust"], default="python")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, programs() as run:
        summary = soak(run, Path(folder), options.router, options.minutes, options.seed)
    print(json.dumps({**asdict(summary), "wrong": summary.wrong()}, indent=1))
    return 1 if summary.wrong() else 0


if __name__ == "__main__":
    sys.exit(main())
