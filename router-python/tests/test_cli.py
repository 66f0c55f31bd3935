"""The program as a process: exit codes, what it prints where, and the loops joined together."""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from rig.fake_registry import registration
from rig.farm import Farm
from rig.processes import ROOT, Programs, wait_until

SCRIPT = "router-python/distributed_router.py"


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def test_faults_go_to_standard_error_all_at_once_with_exit_code_64(
    run: Programs, tmp_path: Path
) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"router": {"port": -1, "bogus": 1}}')
    program = run.python(SCRIPT, "--config", file, "--health-interval", "x")
    assert program.wait() == 64
    program.wait_for_line("router.port: -1")
    assert len(program.lines) == 3
    assert "Traceback" not in program.output


def test_check_config_prints_the_effective_settings_and_exits_with_0(run: Programs) -> None:
    program = run.python(SCRIPT, "--check-config", "--router-port", "0", "--policy", "least_conn")
    assert program.wait() == 0
    program.wait_for_line("^}")
    shown = json.loads(program.output)
    assert (shown["router_port"], shown["policy"]) == (0, "least_loaded")


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--config", "router_config.json"),
        ("--static-services", "router_config.json"),
        ("--static-services", "server1_services.json"),
        ("--static-services", "server2_services.json"),
    ],
)
def test_the_shipped_files_are_understood_from_any_folder(
    run: Programs, tmp_path: Path, flag: str, name: str
) -> None:
    file = ROOT / "deployment_configs" / name
    program = run.python(SCRIPT, flag, file, "--check-config", cwd=tmp_path)
    assert program.wait() == 0, program.output


def test_it_runs_as_a_module_too(run: Programs) -> None:
    program = run.start(
        sys.executable, "-m", "infinilm_router", "--help", cwd=ROOT / "router-python"
    )
    assert program.wait() == 0


def test_engines_of_file_and_registry_are_found_probed_and_asked(
    run: Programs, tmp_path: Path
) -> None:
    farm = Farm()
    try:
        fixed = farm.engine("fixed", models=["learned"])
        sick = farm.engine("sick", models=["m"], health=503)
        registry = farm.registry()
        farm.call(registry.publish([registration("sick", sick.port, models=["m"])]))
        static = tmp_path / "static.json"
        static.write_text(json.dumps([{"name": "fixed", "host": "127.0.0.1", "port": fixed.port}]))
        program = run.python(
            SCRIPT, "--router-port", "0", "--host", "127.0.0.1", "--registry-url", registry.url,
            "--static-services", static, "--health-interval", "0.05", "--drain-delay", "0",
        )  # fmt: skip
        url = program.wait_listening()
        wait_until(lambda: get(f"{url}/health")["healthy_services"] == "1/2")
        wait_until(lambda: [m["id"] for m in get(f"{url}/v1/models")["data"]] == ["learned"])
        farm.apply(sick, health=200)
        wait_until(lambda: get(f"{url}/health")["healthy_services"] == "2/2")
        farm.call(registry.publish([]))
        services = get(f"{url}/services")["services"]
        assert [(s["name"], s["source"]) for s in services] == [
            ("fixed", "static"),
            ("sick", "registry"),
        ]
        assert program.stop() == 0
    finally:
        farm.close()
