"""Real etcd members: killed, stopped, continued, cut off, and read behind everybody's back."""

import base64
import contextlib
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import requests

from rig.namespaces import Host
from rig.processes import Program, Programs, free_port, wait_until

CLIENT, PEER = 0, 1  # which of a member's two ports


class Member:
    """One etcd process and the folder with its data; a new process finds what the old one left."""

    def __init__(self, run: Programs, name: str, folder: Path, host: Host | None = None) -> None:
        self.name = name
        self.host = host
        self.port = free_port()
        address = host.address if host else "127.0.0.1"
        self.urls = tuple(f"http://{address}:{self.port + offset}" for offset in (CLIENT, PEER))
        self._run = run
        self._folder = folder
        self._members = ""
        self.program: Program | None = None

    def start(self, members: str = "") -> None:
        """Start it (again); `members` are all members of its cluster, the same at each start."""
        self._members = members or self._members
        client, peer = self.urls
        with self.host.inside() if self.host else contextlib.nullcontext():
            self.program = self._run.start(
                "etcd",
                *("--name", self.name, "--data-dir", self._folder),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", self._members, "--log-level", "error"),
            )

    def kill(self) -> None:
        assert self.program
        self.program.kill()

    def pause(self) -> None:
        assert self.program
        self.program.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.program
        self.program.signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Lose everything that a killed member had."""
        shutil.rmtree(self._folder)

    def answers(self) -> bool:
        """Whether it and the majority of the members can be asked."""
        with contextlib.suppress(requests.RequestException):
            return call(self.urls[CLIENT], "/kv/range", key=text("x")) is not None
        return False


class Cluster:
    """Members m0, m1, ... that have found each other: on loopback, or each on its host."""

    def __init__(
        self, run: Programs, folder: Path, size: int = 3, hosts: Sequence[Host] = ()
    ) -> None:
        places = hosts or [None] * size
        self.members = [
            Member(run, f"m{n}", folder / f"m{n}", place) for n, place in enumerate(places)
        ]
        self._all = ",".join(f"{member.name}={member.urls[PEER]}" for member in self.members)
        self.start()

    def start(self) -> None:
        """Start all members; returns when they answer."""
        for member in self.members:
            member.start(self._all)
        self.wait()

    def wait(self) -> None:
        """Return when every member answers."""
        for member in self.members:
            wait_until(member.answers, 30, f"etcd {member.name} answers", every=0.1)

    @property
    def store(self) -> str:
        """What `--store` calls it."""
        hosts = (member.urls[CLIENT].removeprefix("http://") for member in self.members)
        return "etcd://" + ",".join(hosts)

    @property
    def leader(self) -> Member:
        """The member that leads."""

        def find() -> Member | None:
            return next((m for m in self.members if m.answers() and _leads(m)), None)

        return wait_until(find, 20, "a leader", every=0.1)  # type: ignore[return-value]

    def read(self, prefix: str = "/infinilm/") -> dict[str, dict[str, Any]]:
        """Every key that begins with `prefix`, from a member that has the majority behind it."""
        after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        for member in self.members:
            with contextlib.suppress(requests.RequestException):
                found = call(
                    member.urls[CLIENT], "/kv/range", key=text(prefix), range_end=text(after)
                )
                return {base64.b64decode(kv["key"]).decode(): kv for kv in found.get("kvs", ())}
        raise AssertionError("no member answers")

    def services(self) -> set[str]:
        """The names that are registered."""
        prefix = "/infinilm/default/services/"
        return {key.removeprefix(prefix) for key in self.read(prefix)}

    def call(self, path: str, **body: Any) -> Any:
        """A call to the first member."""
        return call(self.members[0].urls[CLIENT], path, **body)


def _leads(member: Member) -> bool:
    with contextlib.suppress(requests.RequestException):
        status = call(member.urls[CLIENT], "/maintenance/status")
        return bool(status.get("leader") == status["header"]["member_id"])
    return False


def text(value: str) -> str:
    """A key or value for a call."""
    return base64.b64encode(value.encode()).decode()


def call(url: str, path: str, **body: Any) -> Any:
    """One call to etcd's JSON gateway."""
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(f"{url}/v3{path}", json=body, timeout=5)
        answer.raise_for_status()
        return answer.json()


@contextlib.contextmanager
def etcd_cluster(run: Programs, folder: Path, size: int = 3) -> Iterator[Cluster]:
    """A cluster, its members going on at the end so that they can be stopped."""
    cluster = Cluster(run, folder, size)
    try:
        yield cluster
    finally:
        for member in cluster.members:
            member.go_on()
