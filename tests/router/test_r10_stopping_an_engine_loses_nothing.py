"""R10: stopping an engine loses nothing."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from rig.load_client import Outcome, chat_call
from rig.routers import SLOW, StartRouter
from rig.system import Babysitter, Registry, System, running_system
from rig.traffic import Traffic, faults, served_by

TOKENS_PER_SECOND = 25


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with running_system(tmp_path, TOKENS_PER_SECOND) as made:
        yield made


class Watch:
    """When each thing happened to an engine that is being stopped (times: `time.monotonic`)."""

    def __init__(self, registry: Registry, sitter: Babysitter) -> None:
        self._facts = {
            "draining in the registry": lambda: status(registry, sitter) == "draining",
            "draining on its health": lambda: health(sitter.port + 1) == "draining",
            "engine stopped": lambda: health(sitter.port) is None,
            "unregistered": lambda: status(registry, sitter) is None,
        }
        self.seen: dict[str, float] = {}
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while "unregistered" not in self.seen:
            for name in [name for name in self._facts if name not in self.seen]:
                if self._facts[name]():
                    self.seen[name] = time.monotonic()
            time.sleep(0.01)

    def order(self) -> list[str]:
        """What happened, in order, once all has."""
        self._thread.join(30)
        return sorted(self.seen, key=lambda name: self.seen[name])


def status(registry: Registry, sitter: Babysitter) -> str | None:
    """The registry's word for the engine, None when it is not listed."""
    answer = requests.get(f"{registry.url}/services/{sitter.engine_name}", timeout=5)
    return None if answer.status_code == 404 else str(answer.json()["status"])


def health(port: int) -> str | None:
    """What a health endpoint says, None when nobody listens."""
    try:
        return str(requests.get(f"http://127.0.0.1:{port}/health", timeout=5).json()["status"])
    except requests.ConnectionError:
        return None


@pytest.mark.parametrize("load", [(10, 0.6, 0.4), pytest.param((20, 2.0, 10.0), marks=SLOW)])
def test_an_engine_whose_babysitter_is_stopped_finishes_what_it_has_and_gets_no_more(
    start: StartRouter, system: System, load: tuple[int, float, float]
) -> None:
    rate, seconds, before = load
    # A babysitter waits until nobody is connected to its engine any more, idle or not.
    flags = {"registry-url": system.registry.url, "pool-idle-timeout": 0.2}
    router = start(flags=flags, healthy="2/2")
    stopped = system.sitters[0]
    tokens = int(TOKENS_PER_SECOND * seconds)
    with Traffic(router.url, rate, lambda _: chat_call(stream=True, max_tokens=tokens)) as traffic:
        traffic.go_on(before)  # so that the engine has something to finish
        watch = Watch(system.registry, stopped)
        stopped.program.signal(signal.SIGTERM)
        order = watch.order()
        outcomes = traffic.end()
    assert stopped.program.wait() == 0
    mine = [outcome for outcome in outcomes if served_by(outcome) == stopped.engine_name]
    marked = watch.seen["draining in the registry"]
    last_begun = max(outcome.due for outcome in mine) - marked
    last_ended = max(end_of(outcome) for outcome in mine)
    print(
        f"R10 {router.name}: {len(faults(outcomes))} of {len(outcomes)} streams failed, the last"
        f" new one {last_begun:+.2f} s after it was marked, all ended {last_ended - marked:.2f} s"
        f" after that; order: {', '.join(order)}"
    )
    assert faults(outcomes) == []
    assert set(order[:2]) == {"draining in the registry", "draining on its health"}
    assert order[2:] == ["engine stopped", "unregistered"]
    assert mine, "the engine had nothing to finish: this run proves nothing"
    assert last_begun <= 2.0
    assert marked < last_ended <= watch.seen["engine stopped"] + 0.1


def end_of(outcome: Outcome) -> float:
    return outcome.due + outcome.ended
