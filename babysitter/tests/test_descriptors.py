"""Clients that hold connections to port + 1 cost the babysitter descriptors, the engine nothing."""

import asyncio
import contextlib
import errno
import http.client
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from infinilm_babysitter import drain, proctree, sockets
from infinilm_babysitter.config import check_config
from infinilm_babysitter.door import Door
from infinilm_babysitter.pulse import Measured, Pulse
from infinilm_babysitter.readiness import NotReady, Readiness, Ready
from infinilm_babysitter.states import State
from infinilm_babysitter.supervisor import Supervisor
from infinilm_babysitter.survivors import Notebook
from infinilm_babysitter.visitors import Visitors
from rig.fake_world import MODELS, FakeWorld, config, supervise, until
from rig.processes import wait_until


def with_limits(soft: int, hard: int) -> tuple[str, ...]:
    return ("prlimit", f"--nofile={soft}:{hard}")


def limits(pid: int) -> tuple[int, int]:
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)


def test_the_babysitter_takes_what_it_may_have_and_the_engine_gets_what_it_would_have_got(
    babysit,
) -> None:
    babysat = babysit(prefix=with_limits(1000, 4000))
    babysat.wait_for_state("ready")
    assert limits(babysat.program.pid) == (4000, 4000)
    assert limits(babysat.engine_pid()) == (1000, 4000)


def is_healthy(babysat) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return bool(babysat.get("/health")[0] == 200)
    return False


def test_silent_clients_end_no_engine_and_have_to_go(babysit, registry) -> None:
    babysat = babysit(registry_url=registry.url, prefix=with_limits(64, 64))
    wait_until(lambda: registry.status(babysat.engine_name) == "running")
    engine = babysat.engine_pid()
    with contextlib.ExitStack() as clients:
        for _ in range(100):
            clients.enter_context(socket.create_connection(("127.0.0.1", babysat.port + 1)))
        babysat.program.wait_for_line("out of system resource")
        wait_until(lambda: is_healthy(babysat), 60, what="answers again")
        assert babysat.engine_pid() == engine
    assert babysat.program.stop() == 0
    assert registry.services == {}


async def hello(_: web.Request) -> web.Response:
    return web.Response(text="hello")


@contextlib.asynccontextmanager
async def visited(visitors: Visitors):
    application = web.Application(middlewares=[visitors.middleware])
    application.router.add_get("/", hello)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.server, runner.addresses[0][1]
    finally:
        await runner.cleanup()


def test_only_who_has_asked_nothing_from_one_look_to_the_next_has_to_go() -> None:
    async def story() -> None:
        visitors = Visitors()
        async with visited(visitors) as (server, port):
            asking_reader, asking = await asyncio.open_connection("127.0.0.1", port)
            silent_reader, silent = await asyncio.open_connection("127.0.0.1", port)
            asking.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await asking_reader.readuntil(b"hello")
            await until(lambda: len(server.connections) == 2)
            visitors.send_away(server)
            late_reader, late = await asyncio.open_connection("127.0.0.1", port)
            await until(lambda: len(server.connections) == 3)
            visitors.send_away(server)
            assert await asyncio.wait_for(silent_reader.read(), 5) == b""
            for reader, writer in ((asking_reader, asking), (late_reader, late)):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await asyncio.wait_for(reader.readuntil(b"hello"), 5)
            for writer in (asking, silent, late):
                writer.close()

    asyncio.run(story())


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Every descriptor that this process may have is in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    with contextlib.ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        with contextlib.suppress(OSError):
            while True:
                held.callback(os.close, os.dup(0))
        yield


def test_a_look_that_lacks_a_descriptor_says_nothing_of_the_engine() -> None:
    async def story() -> None:
        async with aiohttp.ClientSession() as session:
            with socket.create_server(("127.0.0.1", 0)) as engine:
                door = Door(session, engine.getsockname()[1])
                readiness, pulse = Readiness(door), Pulse(door, 120)
                before = pulse.belief
                with no_descriptors():
                    finding = await readiness.check(os.getpid())
                    measured = await pulse.measure("m")
        assert isinstance(finding, NotReady)
        assert (finding.unseen, finding.broken) == (True, False)
        assert "Too many open files" in finding.reason
        assert measured is None
        assert pulse.take(finding, Measured()) is before
        assert pulse.take(Ready(MODELS), measured) is before

    asyncio.run(story())


def test_an_engine_whose_files_cannot_be_seen_is_not_taken_for_a_stranger() -> None:
    with socket.create_server(("127.0.0.1", 0)) as engine:
        (found,) = sockets.listeners(engine.getsockname()[1])
        assert sockets.owner(found.inode, [os.getpid()]) == os.getpid()
        with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
            sockets.owner(found.inode, [os.getpid()])


def test_a_list_of_processes_has_no_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int):
        def read(_: Path) -> bytes:
            raise OSError(number, os.strerror(number))

        return read

    monkeypatch.setattr(Path, "read_bytes", fail(errno.ESRCH))
    assert proctree.snapshot() == {}, "they have ended"
    monkeypatch.setattr(Path, "read_bytes", fail(errno.EMFILE))
    with pytest.raises(OSError, match="Too many open files"):
        proctree.snapshot()
    assert proctree.read_process(os.getpid()) is None


def test_a_call_that_lacks_a_descriptor_is_no_silence_of_the_engine(monkeypatch) -> None:
    async def story() -> None:
        async with aiohttp.ClientSession() as session:
            with socket.create_server(("127.0.0.1", 0)) as engine:
                door = Door(session, engine.getsockname()[1])
                seen = sockets.listeners(door.port)
                monkeypatch.setattr(sockets, "listeners", lambda _: seen)
                with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
                    await door.get("/metrics")

    asyncio.run(story())


def test_an_engine_is_started_when_it_can_be_seen_that_its_port_is_free() -> None:
    fake = FakeWorld()
    answers = [OSError(errno.EMFILE, "Too many open files")]

    def holder() -> str:
        if answers:
            raise answers.pop()
        return ""

    fake.port_holder = holder  # type: ignore[method-assign]

    async def story(supervisor: Supervisor) -> None:
        await until(lambda: supervisor.engine_state.state is State.READY)

    supervise(config(), fake, story)
    assert answers == []


def test_a_drain_without_descriptors_waits_its_time() -> None:
    raw = {"port": 1, "backend": {"type": "mock", "models": ["m"]}}
    settings = check_config({**raw, "babysitter": {"drain_timeout": 0.05}}, file="test")

    async def story() -> None:
        with no_descriptors():
            await drain._until_quiet(settings, asyncio.Event())

    asyncio.run(story())


def test_a_note_that_cannot_be_taken_now_is_taken_later(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path / "note", "life")
    with no_descriptors():
        notebook.write(os.getpid())
    assert not (tmp_path / "note").exists()
    notebook.write(os.getpid())
    assert (tmp_path / "note").exists()


def test_killing_goes_on_when_processes_cannot_be_listed() -> None:
    looks = 0

    def find() -> list[proctree.Process]:
        nonlocal looks
        looks += 1
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    proctree.kill_all(find, lambda: looks >= 2, lambda _: None)
