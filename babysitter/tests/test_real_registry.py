"""The babysitter and the real registry keep the same contract."""

import json
import signal
import urllib.request
from typing import Any

from rig.processes import Program, Programs, free_port, wait_until

REGISTRY = "registry/service_registry.py"


def start_registry(run: Programs, port: int) -> Program:
    """Without any memory of an earlier one."""
    registry = run.python(REGISTRY, "--port", str(port), "--store", "memory")
    registry.wait_listening()
    return registry


def services(babysat, port: int) -> dict[str, dict[str, Any]]:
    with urllib.request.urlopen(
        f"http://127.0.0.1:{port}/services?healthy=true", timeout=5
    ) as answer:
        return {each["name"]: each for each in json.load(answer)["services"]}


def test_the_real_registry_lists_the_engine_forgets_it_and_is_told_again(
    run: Programs, babysit
) -> None:
    port = free_port()
    registry = start_registry(run, port)
    babysat = babysit(registry_url=f"http://127.0.0.1:{port}", babysitter={"heartbeat_interval": 1})
    both = {babysat.name, babysat.engine_name}
    wait_until(lambda: set(services(babysat, port)) == both, what="registered")
    assert services(babysat, port)[babysat.engine_name]["metadata"]["models"] == ["m"]

    registry.kill()
    start_registry(run, port)
    wait_until(lambda: set(services(babysat, port)) == both, what="registered again")

    babysat.program.signal(signal.SIGTERM)
    assert babysat.program.wait() == 0
    assert services(babysat, port) == {}
