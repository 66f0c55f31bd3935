"""R31: members of etcd die, the majority is lost, all are paused, and no client notices."""

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from rig.etcd_cluster import Cluster
from rig.etcd_proxy import WATCH
from rig.farm import farm
from rig.fleet import Fleet, etcd_registry
from rig.load_client import Outcome
from rig.processes import Programs, wait_until
from rig.routers import SLOW
from rig.system import Babysitter, stop_all
from rig.traffic import faults


def check(fleet: Fleet, outcomes: list[list[Outcome]], what: str) -> None:
    """No client failed, no heartbeat was refused; say how many there were."""
    for router, sent in zip(fleet.routers, outcomes, strict=True):
        print(f"R31 {router.name}: {what}: {len(sent)} calls, {len(faults(sent))} failed")
        assert faults(sent) == []
        assert sent
    assert {status for status, _ in fleet.beats} == {200}
    fleet.beats.clear()


class Writes:
    """Changes a service at both registries without pause; the times of what was acknowledged."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._stop = threading.Event()
        self.done: list[float] = [time.monotonic()]
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        number = 0
        while not self._stop.wait(0.02):
            number += 1
            change = {"weight": 1 + number % 2}
            answer = self._fleet.call(number % 2, "PUT", "/services/e0", json=change)
            if answer.status_code == 200:
                self.done.append(time.monotonic())

    def end(self) -> float:
        """Stop; the longest time without an acknowledged write, in seconds."""
        self._stop.set()
        self._thread.join(20)
        times = [*self.done, time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("rounds", [1, pytest.param(9, marks=SLOW)])
def test_r31_members_killed_in_turn_fail_no_client(
    etcd: Cluster, fleet: Fleet, rounds: int
) -> None:
    """The everyday lane kills the leader, which is the hardest one to lose."""
    gaps = []
    with fleet.traffic() as outcomes:
        for number in range(rounds):
            member = etcd.leader if number % 3 == 0 else etcd.members[number % 3]
            writes = Writes(fleet)
            member.kill()
            acknowledged = len(writes.done)
            wait_until(lambda: len(writes.done) > acknowledged + 5, 20, "writes go on")  # noqa: B023
            gaps.append(writes.end())
            member.start()
            wait_until(member.answers, 30, "the member is back", every=0.1)
    check(fleet, outcomes, f"{rounds} members killed")
    print(f"R31: longest gap of writes {max(gaps):.2f} s")
    assert max(gaps) <= 4.5  # measured: 2 s; the promise of 3 s has room for a loaded machine


@pytest.mark.parametrize("seconds", [1.0, pytest.param(60.0, marks=SLOW)])
def test_r31_without_a_majority_everything_is_served_from_memory(
    etcd: Cluster, fleet: Fleet, seconds: float
) -> None:
    with fleet.traffic() as outcomes:
        for member in etcd.members[1:]:
            member.kill()
        for number in (0, 1):
            wait_until(lambda: fleet.marks(number)["stale"], 30, "stale")  # noqa: B023
        before, until = len(fleet.beats), time.monotonic() + seconds
        while time.monotonic() < until or len(fleet.beats) < before + 6:
            marks = [fleet.marks(number) for number in (0, 1)]
            assert marks == [{"stale": True, "stale_services": 3, "healthy": 3}] * 2
            time.sleep(0.2)  # between two looks: nothing changes for so long
        assert set(fleet.beats[before + 3 :]) == {(200, True)}
        refused = fleet.register("new", 1001)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
        for member in etcd.members[1:]:
            member.start()
        fleet.wait_current()
        assert [fleet.marks(n)["healthy"] for n in (0, 1)] == [3, 3]
        assert fleet.register("new", 1001).status_code == 201
        assert fleet.call(1, "DELETE", "/services/new").status_code == 200
    check(fleet, outcomes, f"no majority for {seconds:g} s and more")


@pytest.mark.parametrize("seconds", [1.0, pytest.param(30.0, marks=SLOW)])
def test_r31_paused_members_are_found_again_without_a_restart(
    etcd: Cluster, fleet: Fleet, seconds: float
) -> None:
    with fleet.traffic() as outcomes:
        for member in etcd.members:
            member.pause()
        wait_until(lambda: all(fleet.marks(n)["stale"] for n in (0, 1)), 30, "stale")
        time.sleep(seconds)  # the length of the pause is what is tested
        for member in etcd.members:
            member.go_on()
        went_on = time.monotonic()
        fleet.wait_current()
        recovered = time.monotonic() - went_on
        assert fleet.register("new", 1001).status_code == 201
        wait_until(lambda: "new" in fleet.listed(1), 5, "the watch tells of it")
        assert fleet.marks(0)["healthy"] >= 3
        assert fleet.call(1, "DELETE", "/services/new").status_code == 200
    check(fleet, outcomes, f"all members paused for {seconds:g} s and more")
    print(f"R31: current again {recovered:.2f} s after the pause")
    assert recovered <= 10  # measured: below 3 s; the promise of 5 s has room for a loaded machine


def test_r31_a_babysitter_goes_on_at_the_next_registry_without_registering_anew(
    run: Programs, tmp_path: Path, etcd: Cluster, fleet: Fleet
) -> None:
    first = etcd_registry(run, etcd.store)
    both = f"{first.wait_listening()},{fleet.urls[0]}"
    sitter = Babysitter(run, tmp_path, "sitter", both)

    def entry() -> Any:
        answer = fleet.call(1, "GET", f"/services/{sitter.engine_name}")
        return answer.json() if answer.status_code == 200 else None

    sitter.program.wait_for_line(f"registered name={sitter.engine_name}", 30)
    before = wait_until(entry, 5, "listed")
    first.kill()
    sitter.program.wait_for_line("registry changed", 20)
    wait_until(
        lambda: (
            fleet.call(0, "GET", f"/services/{sitter.engine_name}").json()["last_heartbeat"]
            > before["last_heartbeat"] + 2
        ),
        20,
        "heartbeats at the other registry",
    )
    after = entry()
    assert (after["generation"], after["is_healthy"]) == (before["generation"], True)
    stop_all([sitter])
    wait_until(lambda: set(fleet.listed(1)) == {"e0", "e1", "e2"}, 5, "unregistered everywhere")


@pytest.mark.parametrize("networks", ["", "127.0.0.0/8"])
def test_r31_a_registry_that_has_not_heard_of_a_service_yet_moves_it(
    run: Programs, etcd: Cluster, fleet: Fleet, networks: str
) -> None:
    with farm() as fakes:
        proxy = fakes.etcd_proxy(etcd.members[0].port)
        store = f"etcd://127.0.0.1:{proxy.port}"
        url = etcd_registry(run, store, "--allowed-networks", networks).wait_listening()
        wait_until(lambda: proxy.passed.get(WATCH), what="it watches")
        proxy.faults.lost_key = "/infinilm/default/services/moves"
        assert fleet.register("moves", 1001).status_code == 201
        wait_until(lambda: proxy.lost, what="it is not told")
        with requests.Session() as session:
            session.trust_env = False
            where, change = f"{url}/services/moves", {"host": "127.0.0.2", "instance_id": "moves"}
            assert session.get(where, timeout=10).status_code == 404
            moved = session.put(where, json=change, timeout=10)
            unknown = session.put(f"{url}/services/unknown", json=change, timeout=10)
    assert (moved.status_code, unknown.status_code) == (200, 404)
    assert moved.json()["service"]["url"] == "http://127.0.0.2:1001"
    assert fleet.call(0, "DELETE", "/services/moves").status_code == 200
