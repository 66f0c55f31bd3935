"""What a router prints may have nowhere to go: it serves all the same."""

import re
import signal
from pathlib import Path
from typing import Any

from rig.fake_engine import FakeEngine
from rig.flows import static
from rig.handover import handover_flags, services_file
from rig.processes import Program, Programs, free_port, wait_until
from rig.raw_client import RawClient, ask, request_bytes
from rig.routers import FAST, StartRouter, flag_list, router_argv, write_static

UNKNOWN = request_bytes("POST", "/v1/chat/completions", (), b'{"model":"unknown"}')
AT_ONCE = 600  # lines of the log, more than are written together


def unheard(run: Programs, name: str, flags: dict[str, Any]) -> Program:
    """A router whose output goes to a device that is always full."""
    words = flag_list({"host": "127.0.0.1", **FAST, **flags})
    return run.start("sh", "-c", 'exec "$@" >/dev/full', "sh", *router_argv(name), *words)


def is_healthy(url: str) -> bool:
    try:
        return ask(url, "GET", "/health").status == 200
    except OSError:
        return False


def test_a_router_whose_log_cannot_be_written_answers_every_request(
    start: StartRouter, run: Programs, engine: FakeEngine, tmp_path: Path
) -> None:
    port = free_port()
    services = write_static(tmp_path / "services.json", static(engine))
    flags = {"router-port": port, "static-services": services, "state-dir": tmp_path}
    program = unheard(run, start.name, flags)
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: is_healthy(url), 20, "it serves")
    with RawClient(url) as client:
        for _ in range(2):
            client.send(UNKNOWN * AT_ONCE)
            assert {client.read("POST").status for _ in range(AT_ONCE)} == {404}
    told = ask(url, "GET", "/metrics").body.decode()
    counted = re.search(r'requests_total\{[^}]*"model_not_found"[^}]*\} (\d+)', told)
    assert counted
    assert int(counted[1]) == 2 * AT_ONCE
    program.signal(signal.SIGTERM)
    program.wait()


def test_a_successor_whose_output_cannot_be_written_serves_on(
    start: StartRouter, run: Programs, engine: FakeEngine, tmp_path: Path
) -> None:
    flags = handover_flags(tmp_path)
    old = start(static(engine), flags=flags)
    more = {"take-over": True, "static-services": services_file(old), "state-dir": tmp_path}
    successor = unheard(run, start.name, {**flags, **more})
    assert old.program.wait(20) == 0, old.program.output
    assert is_healthy(old.url)
    assert successor.process.poll() is None
