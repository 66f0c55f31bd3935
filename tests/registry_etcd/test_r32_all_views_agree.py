"""R32: after a storm of changes, kills and a partition, every view is what etcd holds."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rig.etcd_cluster import Cluster
from rig.fleet import Fleet, registration
from rig.namespaces import network
from rig.processes import Programs, wait_until
from rig.routers import SLOW, Router

NAMES = [f"s{number}" for number in range(8)]
SETTLE = 2.0  # seconds in which the other registry hears of a change, as promised


@dataclass
class History:
    """What was acknowledged, and what watchers saw, in the order of our clock."""

    removed: dict[str, float] = field(default_factory=dict)  # when acknowledged, until added anew
    violations: list[str] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, names: list[str], asked: float, where: str) -> None:
        """No name twice, and none that was removed before we asked and not added since."""
        with self.lock:
            gone = {name for name, at in self.removed.items() if at < asked}
        doubled = [name for name, count in Counter(names).items() if count > 1]
        self.violations += [f"{where}: {name} twice" for name in doubled]
        self.violations += [f"{where}: {name} came back" for name in gone & set(names)]


def operate(fleet: Fleet, history: History, generator: random.Random) -> None:
    """One random change at a random registry; only who begins it knows of it."""
    name, number = generator.choice(NAMES), generator.randrange(2)
    if generator.random() < 0.6:
        with history.lock:
            history.removed.pop(name, None)  # it may be there from now on, whatever the answer
        body = registration(name, 1001, metadata={"type": "test"})
        status = fleet.call(number, "POST", "/services", json=body).status_code
    else:
        status = fleet.call(number, "DELETE", f"/services/{name}").status_code
        if status in (200, 404):
            with history.lock:
                history.removed[name] = time.monotonic()
    history.counts[status] += 1


def watch(fleet: Fleet, number: int, history: History, stop: threading.Event) -> None:
    """Look at the registry that acknowledges: what it has acknowledged it must not take back."""
    while not stop.wait(0.02):
        asked = time.monotonic() - SETTLE
        history.check(fleet.listed(number), asked, f"registry {number}")


def storm(fleet: Fleet, etcd: Cluster, history: History, operations: int, kills: int) -> None:
    """Operations one after the other, with members killed and started between."""
    generator = random.Random(f"storm {operations}")
    stop = threading.Event()
    watchers = [
        threading.Thread(target=watch, args=(fleet, number, history, stop)) for number in (0, 1)
    ]
    for watcher in watchers:
        watcher.start()
    for step in range(operations):
        operate(fleet, history, generator)
        if kills and step % (operations // kills) == operations // kills // 2:
            member = generator.choice(etcd.members)
            member.kill()
            operate(fleet, history, generator)
            member.start()
            wait_until(member.answers, 30, "the member is back", every=0.1)
    stop.set()
    for watcher in watchers:
        watcher.join(20)


def router_names_of(router: Router) -> set[str]:
    return {service["name"] for service in router.get("/services")["services"]}


def until_all_agree(fleet: Fleet, etcd: Cluster) -> float:
    """Return when they do; the seconds that it took."""
    quiet = time.monotonic()
    wait_until(lambda: agree(fleet, etcd), 20, "all views agree")
    return time.monotonic() - quiet


def agree(fleet: Fleet, etcd: Cluster) -> bool:
    stored = etcd.services()
    engines = {engine.name for engine in fleet.engines}
    lists = [fleet.listed(number) == sorted(stored) for number in (0, 1)]
    routers = [engines <= router_names_of(router) for router in fleet.routers]
    return all(lists) and all(routers)


@pytest.mark.parametrize(("operations", "kills"), [(60, 1), pytest.param(1000, 9, marks=SLOW)])
def test_r32_all_views_agree_after_a_storm(
    etcd: Cluster, fleet: Fleet, operations: int, kills: int
) -> None:
    history = History()
    storm(fleet, etcd, history, operations, kills)
    # A member that is paused and goes on is a partition that heals: its peers could not reach it.
    etcd.members[0].pause()
    generator = random.Random("partition")
    for _ in range(operations // 10):
        operate(fleet, history, generator)
    etcd.members[0].go_on()
    took = until_all_agree(fleet, etcd)
    print(
        f"R32: {sum(history.counts.values())} operations {dict(history.counts)}, "
        f"all agree after {took:.2f} s"
    )
    assert took <= SETTLE
    for name in NAMES:
        fleet.call(0, "DELETE", f"/services/{name}")
    assert history.violations == []
    assert history.counts[201] > operations // 4
    assert set(history.counts) <= {200, 201, 404, 503}


@pytest.mark.parametrize("operations", [pytest.param(50, marks=SLOW)])
def test_r32_a_leader_whose_cable_is_pulled_comes_back_to_the_same_view(
    run: Programs, tmp_path: Path, operations: int
) -> None:
    history, generator = History(), random.Random("cable")
    with network("m0", "m1", "m2", "fleet") as net, net["fleet"].inside():
        etcd = Cluster(run, tmp_path / "etcd", hosts=[net["m0"], net["m1"], net["m2"]])
        fleet = Fleet(run, tmp_path, etcd)
        try:
            leader = etcd.leader
            etcd.members.sort(key=lambda member: member is leader)  # others are asked before it
            net[leader.name].link(up=False)
            for _ in range(operations):
                operate(fleet, history, generator)
            net[leader.name].link(up=True)
            took = until_all_agree(fleet, etcd)
            wait_until(leader.answers, 20, "the leader of before follows")
        finally:
            fleet.close()
    print(f"R32: leader cut off, {dict(history.counts)}, all agree after {took:.2f} s")
    assert took <= SETTLE
    assert history.counts[201] > operations // 4
    assert set(history.counts) <= {200, 201, 404, 503}
