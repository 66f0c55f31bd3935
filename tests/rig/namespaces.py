"""Hosts with a network of their own: Linux network namespaces joined by one bridge.

    with network("client", "router", "engines") as net:
        with net["engines"].inside():
            engine = EngineProcess(run, "e0", ["m"], host=net["engines"].address).wait()
        with net["router"].inside():
            router = start([engine.static()], flags={"host": net["router"].address})
        net["engines"].drop(engine.port)

Programs and threads that are started `inside` a host, and sockets that are made there, belong to
it from then on. Nothing of this shows in the machine's own network, so several runs do not meet;
all of it is gone after the `with`. It takes root, and the programs `ip` and `nft`.
"""

import contextlib
import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMED = Path("/run/netns")
CLONE_NEWNET = 0x40000000
TABLE = "inet rig"
_networks = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def _run(*argv: str, stdin: str | None = None) -> None:
    env = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")


@dataclass(frozen=True)
class Host:
    """One host; `address` is how the others reach it."""

    name: str
    address: str
    namespace: str
    switch: str

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is on the host, and so is whatever it starts meanwhile."""
        with Path("/proc/thread-self/ns/net").open() as here, (NAMED / self.namespace).open() as ns:
            _enter(ns.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def link(self, *, up: bool) -> None:
        """Plug the host's cable out or in: packets are lost without a word."""
        _run("ip", "-n", self.switch, "link", "set", "dev", self.name, "up" if up else "down")

    def drop(self, port: int, peer: "Host | None" = None) -> None:
        """Lose every packet to and from a port of this host (of one peer only, if one is named)."""
        self._rule(f"input {_of(peer, 'saddr')} tcp dport {port} drop")
        self._rule(f"output {_of(peer, 'daddr')} tcp sport {port} drop")

    def reject(self, port: int, peer: "Host | None" = None) -> None:
        """Answer every packet to a port of this host with a reset."""
        self._rule(f"input {_of(peer, 'saddr')} tcp dport {port} reject with tcp reset")

    def clear(self) -> None:
        """Take back every `drop` and `reject`."""
        self._nft(f"flush table {TABLE}")

    def _rule(self, rule: str) -> None:
        self._nft(f"add rule {TABLE} {rule}")

    def _nft(self, commands: str) -> None:
        _run("ip", "netns", "exec", self.namespace, "nft", "-f", "-", stdin=commands)

    def build(self) -> None:
        """Make the namespace, its cable to the switch, and a table without rules."""
        _run("ip", "netns", "add", self.namespace)
        peer = f"peer name {self.name} netns {self.switch}"
        _ip(
            f"link add eth0 netns {self.namespace} type veth {peer}",
            f"-n {self.switch} link set dev {self.name} master bridge up",
            f"-n {self.namespace} address add {self.address}/24 dev eth0",
            f"-n {self.namespace} link set eth0 up",
            f"-n {self.namespace} link set lo up",
        )
        chains = [
            f"add chain {TABLE} {hook} {{ type filter hook {hook} priority 0; }}"
            for hook in ("input", "output")
        ]
        self._nft("\n".join([f"add table {TABLE}", *chains]))


def _of(peer: Host | None, side: str) -> str:
    return f"ip {side} {peer.address}" if peer else ""


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*commands: str) -> None:
    for command in commands:
        _run("ip", *command.split())


@contextlib.contextmanager
def network(*names: str) -> Iterator[dict[str, Host]]:
    """Hosts of these names (at most 15 letters) that reach each other.

    Skips the test where the kernel forbids namespaces.
    """
    _sweep()
    run = f"rig-{os.getpid()}-{next(_networks)}"
    switch = f"{run}-switch"
    hosts = [
        Host(name, f"10.0.0.{number}", f"{run}-{name}", switch)
        for number, name in enumerate(names, 1)
    ]
    try:
        _make_switch(switch)
        for host in hosts:
            host.build()
        yield {host.name: host for host in hosts}
    finally:
        for namespace in [*(host.namespace for host in hosts), switch]:
            _remove(namespace)


def _make_switch(switch: str) -> None:
    try:
        _run("ip", "netns", "add", switch)
    except OSError as error:
        if "not permitted" in str(error) or "Permission denied" in str(error):
            pytest.skip(f"the kernel forbids network namespaces here (are you root?): {error}")
        raise
    _ip(f"-n {switch} link add bridge type bridge", f"-n {switch} link set bridge up")


def _remove(namespace: str) -> None:
    if (NAMED / namespace).exists():
        _run("ip", "netns", "delete", namespace)


def _sweep() -> None:
    """Remove what a run that was killed left behind."""
    for path in NAMED.glob("rig-*-*"):
        if not Path(f"/proc/{path.name.split('-')[1]}").exists():
            with contextlib.suppress(OSError):  # another run sweeps too
                _remove(path.name)
