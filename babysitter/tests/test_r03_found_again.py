"""R3: the real registry lists an engine again within a heartbeat, whatever made it forget it."""

import time

import pytest

from rig.processes import Programs, wait_until
from rig.system import Registry

SLOW = (pytest.mark.slow, pytest.mark.timeout(900))
MOCK = {"type": "mock", "models": ["m"]}


def entry(registry: Registry, name: str) -> dict:
    """What the registry says of it, without what changes by itself."""
    found = registry.entry(name)
    changing = ("timestamp", "last_heartbeat", "health_status", "revision")
    return {key: found[key] for key in found if key not in changing}


@pytest.mark.parametrize(
    ("backend", "rounds", "heartbeat"),
    [
        (MOCK, 2, 1.0),
        pytest.param(MOCK, 20, 10.0, marks=SLOW),
        pytest.param(None, 20, 10.0, marks=SLOW),
    ],
    ids=["", "mock", "command"],
)
def test_r03_an_entry_that_was_deleted_or_forgotten_is_back_within_a_heartbeat(
    run: Programs, babysit, backend: dict | None, rounds: int, heartbeat: float
) -> None:
    registry = Registry(run)
    keys = {} if backend is None else {"backend": backend}
    limits = {"heartbeat_interval": heartbeat}
    babysat = babysit(registry_url=registry.url, babysitter=limits, weight=3, **keys)
    both = {babysat.name, babysat.engine_name}
    wait_until(lambda: registry.names() == both, what="registered")
    full = entry(registry, babysat.engine_name)
    took = []
    for number in range(rounds):
        if number % 2:
            registry.program.kill()
            registry.start()
        else:
            registry.delete(babysat.engine_name)
        began = time.monotonic()
        wait_until(lambda: registry.names() == both, 3 * heartbeat + 10, "back")
        took.append(time.monotonic() - began)
        again = entry(registry, babysat.engine_name)
        assert again | {"generation": 0} == full | {"generation": 0}
    kind = babysat.get("/info")[1]["service_type"]
    print(
        f"R3 {kind}: back {len(took)} of {rounds} times, after {max(took):.1f} s at most"
        f" (heartbeat {heartbeat:g} s)"
    )
    assert max(took) <= heartbeat * 1.1 + 1
