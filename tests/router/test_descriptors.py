"""A router that runs out of descriptors does not blame engines for it."""

import resource

from rig.farm import Farm
from rig.flows import static
from rig.processes import wait_until
from rig.raw_client import RawClient, request_bytes
from rig.routers import StartRouter

CHAT = request_bytes("POST", "/v1/chat/completions", (), b'{"model":"m"}')


def probes(client: RawClient, result: str) -> int:
    """Probes of all engines that ended with this result."""
    client.send(request_bytes("GET", "/metrics"))
    lines = client.read().body.decode().splitlines()
    found = [line for line in lines if f'result="{result}"' in line]
    return sum(int(line.rpartition(" ")[2]) for line in found)


def test_want_of_descriptors_is_no_fault_of_engines(start: StartRouter, fakes: Farm) -> None:
    engines = [fakes.engine(f"e{number}") for number in range(2)]
    router = start(static(*engines), flags={"max-errors": 1, "health-fall": 1})
    with RawClient(router.url) as client:
        client.send(request_bytes("GET", "/health"))
        client.read()
        limits = resource.prlimit(router.program.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(router.program.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        client.send(CHAT)
        refused = client.read("POST")
        assert (refused.status, refused.get("x-infinilm-error")) == (503, "connect_failed")
        wait_until(lambda: probes(client, "busy") >= 4, 10, "probes without a descriptor")
        assert probes(client, "failed") == probes(client, "timeout") == 0
        resource.prlimit(router.program.pid, resource.RLIMIT_NOFILE, limits)
        client.send(CHAT)
        assert client.read("POST").status == 200
    for engine in engines:
        seen = router.service(engine.name)
        assert (seen["error_count"], seen["ejected"], seen["healthy"]) == (0, False, True)


def test_a_router_takes_as_many_descriptors_as_it_may(start: StartRouter) -> None:
    router = start(healthy="0/0")
    soft, hard = resource.prlimit(router.program.pid, resource.RLIMIT_NOFILE)
    assert soft == hard
