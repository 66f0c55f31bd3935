"""Wiring: make the parts, run them, and stop them in the order that loses no answer."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
import uuid
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from infinilm_babysitter import descriptors, proctree, sockets
from infinilm_babysitter.api import Api
from infinilm_babysitter.config import HIGHEST_PORT, Config
from infinilm_babysitter.controls import Controls
from infinilm_babysitter.door import Door
from infinilm_babysitter.drain import drain
from infinilm_babysitter.engine import Engine
from infinilm_babysitter.logpump import LogPump
from infinilm_babysitter.memory import DeviceMemory
from infinilm_babysitter.pulse import Pulse
from infinilm_babysitter.readiness import Readiness, port_holder
from infinilm_babysitter.redact import Redactor, secrets_of_argv, secrets_of_env
from infinilm_babysitter.registration import Registrar
from infinilm_babysitter.registry_client import RegistryClient
from infinilm_babysitter.states import State
from infinilm_babysitter.supervisor import Supervisor
from infinilm_babysitter.survivors import AlreadyRunningError, Notebook
from infinilm_babysitter.visitors import KEPT_FOR, Visitors
from infinilm_babysitter.waiting import cancel, wait_for_any
from infinilm_babysitter.watch import SERVING
from infinilm_babysitter.world import World

REGISTRY_GRACE = 3.0
"""Seconds that a registry gets to take our leave."""
KILL_GRACE = 10.0
"""Seconds after SIGKILL until an engine that will not die is given up on."""
ASKED_LATELY = 30.0
"""Somebody who asked for our health within so many seconds may be sending requests."""
NOTE_EVERY = 5.0
NOTE_FIRST = 0.5
"""Seconds between notes of an engine's processes, and between looks for one to be noted."""
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAME_REQUEST = 0.1
"""Signals that follow the first one this soon, in seconds, are part of it."""

log = logging.getLogger(__name__)


class StartError(Exception):
    """The babysitter cannot start; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What the user asked for."""

    stop: asyncio.Event
    hurry: asyncio.Event
    """Asked a second time: at once, without waiting for running answers."""
    a_second_counts: asyncio.Event = field(default_factory=asyncio.Event)
    """From now on another signal is a second request."""

    def listen(self) -> None:
        """Take SIGTERM, SIGINT, and SIGHUP unless it is ignored as nohup does."""
        loop = asyncio.get_running_loop()

        def pass_on(number: int, _frame: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._take, signal.Signals(number))

        # Not the loop's own handlers: those end with the loop, `ignore` comes after that.
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, pass_on)

    def ignore(self) -> None:
        """All is done: one more signal must not make a failure of a clean end."""
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)

    def _take(self, number: signal.Signals) -> None:
        if not self.stop.is_set():
            log.info("stopping signal=%s", number.name)
            self.stop.set()
            # Tools like timeout(1) signal the process and its group: both are one request.
            asyncio.get_running_loop().call_later(SAME_REQUEST, self.a_second_counts.set)
        elif self.a_second_counts.is_set():
            log.info("stopping at once signal=%s", number.name)
            self.hurry.set()


@dataclass(slots=True)
class Parts:
    """Everything that runs."""

    config: Config
    session: aiohttp.ClientSession
    pump: LogPump
    registrar: Registrar
    supervisor: Supervisor
    memory: DeviceMemory
    notebook: Notebook
    api: Api


async def run(config: Config) -> int:
    """Serve until a signal; the exit code.

    Raises:
        StartError: the babysitter's own port is taken, or another babysitter runs this engine.
    """
    config, own_socket = _take_ports(config)
    signals = Signals(stop=asyncio.Event(), hurry=asyncio.Event())
    signals.listen()
    proctree.become_subreaper()
    descriptors.raise_limit()
    timeout = aiohttp.ClientTimeout(total=config.timing.probe_timeout)
    with contextlib.closing(own_socket):
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            code = await _serve(_make_parts(config, session), own_socket, signals)
    signals.ignore()
    return code


def _take_ports(config: Config) -> tuple[Config, socket.socket]:
    """Bind the babysitter's own port; with port 0 first find one whose next one is free as well."""
    if config.port:
        return config, _bind(config.bind, config.port + 1)
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port <= HIGHEST_PORT and not sockets.listeners(port):
            with contextlib.suppress(StartError):
                return config.at_port(port), _bind(config.bind, port + 1)


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    own = socket.socket(family)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind((address, port))
        own.listen(128)
    except OSError as error:
        own.close()
        why = port_holder(port, None) or f"cannot listen on {address}:{port}: {error.strerror}"
        raise StartError(f"{why}; it is the babysitter's own port, the engine's plus 1") from error
    own.setblocking(False)
    return own


def _make_parts(config: Config, session: aiohttp.ClientSession) -> Parts:
    life = uuid.uuid4().hex
    pump = LogPump(config.log_dir / f"engine_{config.name}.log", config.log)
    registrar = Registrar(config, RegistryClient(session, config.registry_urls), life)
    door = Door(session, config.port, config.api_key_file)
    memory = DeviceMemory(
        lambda: {**os.environ, **config.launch.env}, config.timing.gpu_free_timeout
    )

    async def let_answers_end(hurry: asyncio.Event) -> None:
        await _drain(parts, hurry)

    world = World(
        spawn=lambda launch: Engine(launch, pump, life),
        checker=Readiness(
            door,
            configured_models=config.models or config.launch.models,
            check_listener=config.check_listener,
        ),
        take_pulse=lambda: Pulse(door, config.timing.stalled_after),
        announcer=registrar,
        memory=memory,
        drain=let_answers_end,
        port_holder=lambda: port_holder(config.port, None),
    )
    supervisor = Supervisor(config, world)
    notebook = Notebook(config.log_dir / f"engine_{config.name}.state.json", life)
    controls = Controls(supervisor, pump, Redactor(lambda: _secrets(config)))
    api = Api(config, supervisor, registrar, pump, controls)
    parts = Parts(config, session, pump, registrar, supervisor, memory, notebook, api)
    return parts


def _secrets(config: Config) -> list[str]:
    """Everything secret that the engine was given, or that we know ourselves."""
    launch = config.launch
    found = [*secrets_of_env({**os.environ, **launch.env}), *secrets_of_argv(launch.argv)]
    if config.api_key_file:
        with contextlib.suppress(OSError, ValueError):
            found.append(config.api_key_file.read_text(encoding="utf-8").strip())
    return [secret for secret in found if secret]


async def _serve(parts: Parts, own_socket: socket.socket, signals: Signals) -> int:
    visitors = Visitors()
    application = parts.api.application()
    application.middlewares.append(visitors.middleware)
    runner = web.AppRunner(
        application, access_log=None, shutdown_timeout=1.0, keepalive_timeout=KEPT_FOR
    )
    await runner.setup()
    watching = asyncio.create_task(visitors.watch(_server_of(runner)), name="visitors")
    try:
        await _end_survivors(parts, signals.stop)
        await web.SockSite(runner, own_socket).start()
        _say_where(parts.config, own_socket)
        parts.registrar.start()
        await _supervise(parts, signals)
        return await _stop(parts, signals.hurry)
    finally:
        await cancel(watching)
        await runner.cleanup()
        await asyncio.to_thread(parts.pump.close)


def _server_of(runner: web.AppRunner) -> web.Server:
    assert runner.server is not None  # for the type checker: it is set up
    return runner.server


async def _end_survivors(parts: Parts, stop: asyncio.Event) -> None:
    try:
        ended = await asyncio.to_thread(parts.notebook.end_survivors, stop.is_set)
    except AlreadyRunningError as error:
        raise StartError(f"{error}; stop it first, or choose another name") from error
    parts.memory.expect(set(parts.notebook.last_pids))
    if ended:
        log.warning("survivors of the last life ended processes=%d", ended)


def _say_where(config: Config, own_socket: socket.socket) -> None:
    port = own_socket.getsockname()[1]
    wildcard = config.bind in {"0.0.0.0", "::"}  # noqa: S104  # compared, not bound
    with contextlib.suppress(OSError):  # our own log may lie on a disk that is full
        sys.stdout.write(f"listening on http://{config.host if wildcard else config.bind}:{port}\n")
        sys.stdout.flush()
    log.info(
        "babysitter serves name=%s pid=%d engine_port=%d", config.name, os.getpid(), config.port
    )


async def _supervise(parts: Parts, signals: Signals) -> None:
    supervision = asyncio.create_task(parts.supervisor.supervise(signals.stop), name="supervisor")
    noting = asyncio.create_task(_keep_noting(parts), name="notes")
    try:
        await supervision
    finally:
        await cancel(noting, supervision)


async def _keep_noting(parts: Parts) -> None:
    while True:
        run = parts.supervisor.run_now
        await asyncio.to_thread(parts.notebook.write, run.keeper_pid if run else None)
        await asyncio.sleep(NOTE_EVERY if run else NOTE_FIRST)


async def _stop(parts: Parts, hurry: asyncio.Event) -> int:
    """Announce, let answers end, stop the engine, take leave; 1 if processes are left."""
    state, run = parts.supervisor.engine_state, parts.supervisor.run_now
    all_gone = True
    if run is not None:
        was_serving, drained = state.state in SERVING, parts.supervisor.drained
        if state.state is not State.DRAINING:
            state.change_state(State.DRAINING)
        if was_serving and not drained:
            parts.registrar.engine_draining()
            await _drain(parts, hurry)
        all_gone = await _end_engine(parts, hurry)
    if state.state is not State.STOPPED:
        state.change_state(State.STOPPED)
    await parts.registrar.close(REGISTRY_GRACE)
    if all_gone:
        parts.notebook.remove()
    return 0 if all_gone else 1


async def _drain(parts: Parts, hurry: asyncio.Event) -> None:
    """Let the news reach the registry and the routers, and running answers end."""
    await parts.registrar.flush(REGISTRY_GRACE)
    asked_lately = time.monotonic() - parts.api.last_asked < ASKED_LATELY
    known = parts.registrar.engine_is_known or asked_lately
    await drain(parts.config, parts.session, hurry, known=known)


async def _end_engine(parts: Parts, hurry: asyncio.Event) -> bool:
    """SIGTERM, in time SIGKILL; whether every process of the engine has gone."""
    run, timeout = parts.supervisor.run_now, parts.config.timing.stop_timeout
    if run is None:
        return True
    over = asyncio.Event()
    end = asyncio.create_task(run.wait())
    end.add_done_callback(lambda _: over.set())
    try:
        if not hurry.is_set():
            run.stop(timeout)
            await wait_for_any(over, hurry, within=timeout + KILL_GRACE)
        run.kill()
        if not await wait_for_any(over, within=KILL_GRACE):
            log.error("engine still has processes keeper_pid=%d", run.keeper_pid)
            return False
        log.info("engine stopped reason=%r", end.result().describe())
        return True
    finally:
        await cancel(end)
