"""R27: what was acknowledged survives kill -9, broken disks and damaged files."""

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from rig.processes import wait_until

Body = Callable[..., dict[str, Any]]
Start = Callable[..., Any]

UNLIMITED = ("--write-rate", "1000000", "--write-burst", "1000000")
SENDERS = 4
NAMES_PER_SENDER = 12


class Sender:
    """Registers and removes its own names; knows for each what the registry may and must hold.

    `held[name]` are the allowed weights, None for absent. An acknowledged change leaves one; a
    change whose answer was cut off may or may not have happened, which leaves two.
    """

    def __init__(self, number: int, seed: int, make: Body) -> None:
        self.names = [f"s{number}-{n}" for n in range(NAMES_PER_SENDER)]
        self.held: dict[str, set[int | None]] = {name: {None} for name in self.names}
        self.dice = random.Random(seed + number)
        self.make = make
        self.acknowledged = 0
        self.serial = 0

    def work(self, url: str) -> None:
        """Send changes until the registry is gone."""
        with requests.Session() as session:
            session.trust_env = False
            while self.change(session, url):
                pass

    def change(self, session: requests.Session, url: str) -> bool:
        name = self.dice.choice(self.names)
        self.serial += 1
        wanted = self.serial if self.dice.random() < 0.6 else None
        before = self.held[name]
        self.held[name] = before | {wanted}
        try:
            if wanted is None:
                answer = session.delete(f"{url}/services/{name}", timeout=20)
                assert answer.status_code in ({200} if None not in before else {200, 404})
            else:
                registration = self.make(name, weight=wanted)
                answer = session.post(f"{url}/services", json=registration, timeout=20)
                assert answer.status_code == 201
        except requests.RequestException:
            return False
        self.held[name] = {wanted}
        self.acknowledged += 1
        return True

    def check(self, found: dict[str, int]) -> None:
        """Compare with what a restarted registry holds, and go on from there."""
        for name in self.names:
            assert found.get(name) in self.held[name], name
            self.held[name] = {found.get(name)}


def torture(start: Start, store: Path, make: Body, *, kills: int, changes: int) -> int:
    """Kill the registry `kills` times under load; returns the acknowledged changes, all checked."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    senders = [Sender(number, seed, make) for number in range(SENDERS)]
    for round_number in range(kills + 1):
        registry = start("--store", store, *UNLIMITED)
        services = registry.get("/services")["services"]
        found = {service["name"]: service["weight"] for service in services}
        assert registry.get("/health")["degraded"] is False
        for sender in senders:
            sender.check(found)
        if round_number == kills:
            assert registry.program.stop() == 0
            break
        with ThreadPoolExecutor(SENDERS) as pool:
            work = [pool.submit(sender.work, registry.url) for sender in senders]
            wait_for_changes(senders, changes * (round_number + 1) // kills)
            time.sleep(dice.uniform(0, 0.02))  # the random moment of the kill
            registry.program.kill()
            for job in work:
                job.result(30)
    return sum(sender.acknowledged for sender in senders)


def wait_for_changes(senders: list[Sender], count: int) -> None:
    wait_until(lambda: sum(sender.acknowledged for sender in senders) >= count, 60, every=0.001)


def test_r27_acknowledged_changes_survive_8_kills_at_random_moments(
    start: Start, body: Body, tmp_path: Path
) -> None:
    checked = torture(start, tmp_path / "r.sqlite3", body, kills=8, changes=200)
    assert checked >= 200
    print(f"R27: {checked} acknowledged changes, 8 kills, 0 lost")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_r27_acknowledged_changes_survive_50_kills_at_random_moments(
    start: Start, body: Body, tmp_path: Path
) -> None:
    checked = torture(start, tmp_path / "r.sqlite3", body, kills=50, changes=2_000)
    assert checked >= 2_000
    print(f"R27: {checked} acknowledged changes, 50 kills, 0 lost")


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_r27_a_registry_with_a_damaged_store_starts_reports_and_serves(
    content: bytes, start: Start, body: Body, tmp_path: Path
) -> None:
    store = tmp_path / "r.sqlite3"
    store.write_bytes(content)
    began = time.monotonic()
    registry = start("--store", store)
    health = registry.get("/health")
    print(f"R27: a store of {content[:6]!r}... : serves after {time.monotonic() - began:.2f} s")
    (aside,) = tmp_path.glob("r.sqlite3.damaged-*")
    assert aside.read_bytes() == content
    assert health["degraded"] is True
    assert aside.name in health["degraded_reason"]
    assert aside.name in registry.program.output
    assert registry.register(body()).status_code == 201
    registry.program.kill()
    again = start("--store", store)
    assert again.names() == {"engine"}
    assert again.get("/health")["degraded"] is False


def test_r27_a_store_torn_by_a_crash_gives_back_what_is_intact(
    start: Start, body: Body, tmp_path: Path
) -> None:
    store = tmp_path / "r.sqlite3"
    first = start("--store", store, *UNLIMITED)
    registered = {f"e{n}" for n in range(60)}
    for name in registered:
        first.register(body(name, metadata={"filling": name * 200}))
    assert first.program.stop() == 0
    os.truncate(store, store.stat().st_size * 3 // 4)
    second = start("--store", store)
    assert second.get("/health")["degraded"] is True
    assert second.names() <= registered
    assert second.register(body("new")).status_code == 201


def test_r27_a_store_that_was_removed_is_written_anew_by_the_next_change(
    start: Start, body: Body, tmp_path: Path
) -> None:
    store = tmp_path / "r.sqlite3"
    registry = start("--store", store)
    for name in ("kept", "gone"):
        assert registry.register(body(name)).status_code == 201
    for file in tmp_path.glob("r.sqlite3*"):
        file.unlink()
    assert registry.call("DELETE", "/services/gone").status_code == 200
    assert "the store was removed" in registry.program.output
    registry.program.kill()
    again = start("--store", store)
    assert again.names() == {"kept"}
    assert again.get("/health")["degraded"] is False


@pytest.fixture
def without_override() -> list[str]:
    """A prefix that makes file permissions count for root, too."""
    return ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []


def test_r27_a_read_only_store_is_taken_over_into_a_new_file(
    start: Start, body: Body, tmp_path: Path, without_override: list[str]
) -> None:
    store = tmp_path / "r.sqlite3"
    first = start("--store", store)
    first.register(body("kept"))
    first.program.kill()  # what was acknowledged stands in the log only
    store.chmod(0o444)
    registry = start("--store", store, prefix=without_override)
    assert registry.names() == {"kept"}
    assert marks(registry) == {(True, False)}
    assert registry.register(body("new")).status_code == 201
    assert len(list(tmp_path.glob("r.sqlite3.damaged-*Z"))) == 1


@pytest.mark.parametrize("end", ["killed", "stopped", "never there"])
def test_r27_a_registry_that_starts_on_a_full_disk_has_what_was_kept_and_serves(
    end: str, start: Start, body: Body, tmp_path: Path
) -> None:
    store = tmp_path / "r.sqlite3"
    kept = {"e0", "e1"} if end != "never there" else set()
    if kept:
        first = start("--store", store)
        assert {first.register(body(name)).status_code for name in kept} == {201}
        if end == "killed":
            first.program.kill()
        else:
            assert first.program.stop() == 0
    registry = start("--store", store, prefix=["prlimit", "--fsize=1000:"])
    assert registry.names() == registry.names("?healthy=true") == kept
    assert registry.register(body("refused", metadata={"x": "y" * 9000})).status_code == 503
    assert marks(registry) == {(True, True)}
    limit_files(registry.program.pid, "unlimited")
    wait_until(lambda: marks(registry) == {(False, False)}, what="notices by itself")
    assert registry.register(body("after")).status_code == 201
    registry.program.kill()
    assert start("--store", store).names() == {*kept, "after"}
    assert list(tmp_path.glob("*damaged*")) == [], "a full disk is no damage"


def test_r27_a_full_disk_refuses_writes_until_there_is_room_again(
    start: Start, body: Body, tmp_path: Path
) -> None:
    store = tmp_path / "r.sqlite3"
    registry = start("--store", store, *UNLIMITED)
    registry.register(body("before"))
    limit_files(registry.program.pid, "1000")  # bytes: no file can grow
    refused = registry.register(body("refused", metadata={"filling": "x" * 8000}))
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert "cannot store" in refused.json()["error"]
    assert registry.call("DELETE", "/services/before").status_code == 503
    assert marks(registry) == {(True, True)}
    assert registry.get("/services/before")["stale"] is True
    assert registry.names() == registry.names("?healthy=true") == {"before"}
    limit_files(registry.program.pid, "unlimited")
    assert registry.register(body("after")).status_code == 201
    assert marks(registry) == {(False, False)}
    assert registry.get("/services/before")["stale"] is False
    registry.program.kill()
    assert start("--store", store).names() == {"before", "after"}


def marks(registry: Any) -> set[tuple[bool, bool]]:
    """The marks `degraded` and `stale` of every answer that has them."""
    answers = [registry.get(path) for path in ("/services", "/health", "/stats")]
    return {(answer["degraded"], answer["stale"]) for answer in answers}


def test_r27_heartbeats_are_taken_while_the_store_is_down_and_say_so(
    start: Start, body: Body, tmp_path: Path
) -> None:
    registry = start("--store", tmp_path / "r.sqlite3")
    registry.register(body())
    limit_files(registry.program.pid, "1000")
    assert registry.call("PUT", "/services/engine", json={"weight": 2}).status_code == 503
    for status in ("running", "draining"):
        beat = registry.call("POST", "/services/engine/heartbeat", json={"status": status})
        assert (beat.status_code, beat.json()["degraded"]) == (200, True)
    assert registry.get("/services/engine")["status"] == "running", "it could not be kept"
    limit_files(registry.program.pid, "unlimited")
    wait_until(lambda: marks(registry) == {(False, False)}, what="notices by itself")
    beat = registry.call("POST", "/services/engine/heartbeat", json={"status": "draining"})
    assert "degraded" not in beat.json()
    assert registry.get("/services/engine")["status"] == "draining"


def limit_files(pid: int, size: str) -> None:
    """Let no file of the process grow beyond `size` bytes; what is larger already stays."""
    subprocess.run(["prlimit", "--pid", str(pid), f"--fsize={size}:"], check=True)


@pytest.fixture
def failing_sync(tmp_path: Path) -> Iterator[Callable[[int], Any]]:
    """`failing_sync(pid)` makes every fsync of a running process fail until `.stop()`."""
    tracers: list[subprocess.Popen[bytes]] = []

    class Fault:
        def __init__(self, pid: int) -> None:
            calls = "fsync,fdatasync"
            log = tmp_path / f"strace-{len(tracers)}"
            inject = ("-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO")
            self.log = log
            self.tracer = subprocess.Popen(
                ["strace", "-f", "-q", "-o", log, *inject, "-p", str(pid)],
                stderr=subprocess.DEVNULL,
            )
            tracers.append(self.tracer)
            wait_until(lambda: self.traced(pid), what="strace attached")

        def traced(self, pid: int) -> bool:
            tasks = Path(f"/proc/{pid}/task").iterdir()
            mark = f"TracerPid:\t{self.tracer.pid}\n"
            return all(mark in (task / "status").read_text() for task in tasks)

        def stop(self) -> None:
            self.tracer.terminate()
            self.tracer.wait(10)

    yield Fault
    for tracer in tracers:
        if tracer.poll() is None:
            tracer.terminate()
            tracer.wait(10)


def test_r27_a_write_whose_sync_fails_is_not_acknowledged(
    start: Start, body: Body, tmp_path: Path, failing_sync: Callable[[int], Any]
) -> None:
    store = tmp_path / "r.sqlite3"
    registry = start("--store", store)
    assert registry.register(body("before")).status_code == 201
    fault = failing_sync(registry.program.pid)
    for _ in range(3):
        assert registry.register(body("refused")).status_code == 503
        assert registry.call("DELETE", "/services/before").status_code == 503
    assert "EIO" in fault.log.read_text()
    assert registry.names() == {"before"}
    fault.stop()
    assert registry.register(body("after")).status_code == 201
    registry.program.kill()
    assert start("--store", store).names() == {"before", "after"}


def test_r27_the_store_can_fail_while_watchers_and_heartbeats_go_on(
    start: Start, body: Body, tmp_path: Path
) -> None:
    registry = start("--store", tmp_path / "r.sqlite3")
    registry.register(body("engine"))
    limit_files(registry.program.pid, "1000")
    revision = registry.get("/services")["revision"]
    answers: list[int] = []

    def beat() -> None:
        with requests.Session() as session:
            url = f"{registry.url}/services/engine/heartbeat"
            answers.extend(session.post(url, timeout=9).status_code for _ in range(20))

    sender = threading.Thread(target=beat)
    sender.start()
    assert registry.call("PUT", "/services/engine", json={"status": "draining"}).status_code == 503
    sender.join(20)
    assert answers == [200] * 20
    assert registry.get("/services")["revision"] == revision
