"""SIGHUP: the configuration is read again, and applied where that can be done while serving."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from rig.fake_engine import FakeEngine
from rig.flows import static
from rig.processes import wait_until
from rig.raw_client import RawClient, request_bytes
from rig.routers import Router, StartRouter, write_static


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The router's static file; the fixture `start` has one of its own beside it."""
    return tmp_path / "services.json"


def reload(router: Router, expected: str) -> None:
    router.program.signal(signal.SIGHUP)
    router.program.wait_for_line(expected)


def names(router: Router) -> set[str]:
    return {service["name"] for service in router.get("/services")["services"]}


def test_static_services_change_on_sighup(
    start: StartRouter, engine: FakeEngine, file: Path
) -> None:
    [first] = static(engine)
    write_static(file, [first])
    router = start(flags={"static-services": file}, healthy="1/1")
    write_static(file, [first, {**first, "name": "second", "weight": 3}])
    reload(router, "configuration reloaded")
    wait_until(lambda: names(router) == {engine.name, "second"}, 5, "the new service is there")


def test_a_bad_file_changes_nothing_and_names_every_fault(
    start: StartRouter, engine: FakeEngine, file: Path
) -> None:
    write_static(file, static(engine))
    router = start(flags={"static-services": file}, healthy="1/1")
    write_static(file, [{"host": "127.0.0.1", "port": 0, "weight": -1, "colour": "red"}])
    reload(router, "configuration not reloaded")
    for fault in ("port", "weight", "colour"):
        router.program.wait_for_line(fault)
    assert names(router) == {engine.name}


def test_what_cannot_change_while_serving_is_said(
    start: StartRouter, engine: FakeEngine, file: Path
) -> None:
    write_static(file, static(engine))
    config = file.with_name("router_config.json")
    config.write_text('{"router": {"registry_url": "", "policy": "random"}}')
    router = start(
        flags={"static-services": file, "config": config, "state-dir": None}, healthy="1/1"
    )
    config.write_text('{"router": {"registry_url": "http://127.0.0.1:9", "policy": "random"}}')
    reload(router, "setting needs a restart name=registry_urls")
    assert names(router) == {engine.name}


@pytest.mark.parametrize(
    "change",
    [
        ("/v1/chat/completions", {"max_body_bytes": 1000}, {"max_body_bytes": 10}, 413),
        ("/sleep", {"proxy_paths": ["/sleep"]}, {"proxy_paths": []}, 404),
    ],
    ids=["limit of bodies", "paths"],
)
def test_a_kept_connection_goes_by_the_new_settings_from_its_next_request_on(
    start: StartRouter, engine: FakeEngine, file: Path, change: tuple[str, Any, Any, int]
) -> None:
    target, before, after, status = change
    write_static(file, static(engine))
    config = file.with_name("router_config.json")
    config.write_text(json.dumps({"router": before}))
    flags = {"static-services": file, "config": config, "state-dir": None}
    router = start(flags=flags, healthy="1/1")
    request = request_bytes("POST", target, (), b'{"model":"m"}')
    with RawClient(router.url) as client:
        client.send(request)
        assert client.read("POST").status == 200
        config.write_text(json.dumps({"router": after}))
        reload(router, "configuration reloaded")
        client.send(request)
        assert client.read("POST").status == status
