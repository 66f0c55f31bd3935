"""deploy_services.sh; the remote machines are folders, reached through a stand-in for ssh."""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from rig.processes import free_port, wait_until

# Machine NAME is the folder $MACHINES/NAME, where `ssh OPTIONS NAME COMMAND...` runs it.
SSH = """#!/usr/bin/env bash
set -euo pipefail
while [[ $1 == -* ]]; do shift 2; done  # -o OPTION, -l USER
machine=${1#*@} && shift
[[ -d $MACHINES/$machine ]] || { echo "ssh: $machine: No route to host" >&2; exit 255; }
printf '%s\\n' "$*" >>"$MACHINES/$machine.commands"
cd "$MACHINES/$machine"
unset INFINILM_REGISTRY_TOKEN INFINILM_ADMIN_TOKEN  # sshd hands on no variables
exec bash -c "$*"
"""


@pytest.fixture
def machines(tree, tmp_path) -> Path:
    ssh = tree.write("bin/ssh", SSH)
    ssh.chmod(0o755)
    folder = tmp_path / "machines"
    folder.mkdir()
    tree.env.update(PATH=f"{ssh.parent}:{tree.env['PATH']}", MACHINES=str(folder))
    return folder


def services_file(tree, name: str, *services: tuple[str, str, int]) -> None:
    entries = [{"name": name, "host": host, "port": port} for name, host, port in services]
    tree.write(f"deployment_configs/{name}", json.dumps({"services": entries}))


def mock_config(tree, name: str, registry: str = "http://localhost:1") -> int:
    port = free_port()
    tree.write(
        f"deployment_configs/babysitters/{name}.toml",
        f'name = "{name}"\nport = {port}\nregistry_url = "{registry}"\n'
        "[babysitter]\ndrain_settle = 0.1\nprobe_interval = 0.1\n"
        '[backend]\ntype = "mock"\nmodels = ["m"]\n',
    )
    return port


def start_registry(tree) -> str:
    port = free_port()
    code, output = tree.script("deploy_services.sh", "-r", str(port), "start-registry")
    assert code == 0, output
    return f"http://localhost:{port}"


def registered(registry: str) -> dict[str, str]:
    with urllib.request.urlopen(f"{registry}/services?healthy=true", timeout=5) as answer:
        return {entry["name"]: entry["host"] for entry in json.load(answer)["services"]}


def test_deploy_remote_copies_the_tree_and_starts_its_engines(tree, machines):
    registry = start_registry(tree)
    (machines / "127.0.0.2").mkdir()
    for shipped in tree.root.glob("deployment_configs/*_services.json"):
        shipped.unlink()
    services_file(tree, "server1_services.json", ("mock", "127.0.0.2", 5001))
    mock_config(tree, "mock")
    remote = machines / "127.0.0.2/infinilm svc"
    settings = {"REMOTE_DIR": remote.name, "REGISTRY_URL": registry}
    old = tree.write("registry/old.py", "")
    try:
        for _ in range(2):  # the second time, what runs is kept and what was removed here goes
            code, output = tree.script("deploy_services.sh", "deploy-remote", **settings)
            assert code == 0, output
            wait_until(lambda: registered(registry).get("mock-server") == "127.0.0.2", 20, output)
            assert (remote / "registry/old.py").exists() == old.exists()
            old.unlink(missing_ok=True)
    finally:
        stopped, said = tree.run(remote / "stop_all.sh")
    assert stopped == 0, said
    wait_until(lambda: not registered(registry), 20, "unregistered")


def logs_status(port: int, token: str) -> int:
    """How the babysitter beside an engine answers who asks for its log."""
    headers = {"Authorization": f"Bearer {token}"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port + 1}/logs?lines=1", headers=headers)
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        refused.close()
        return refused.code


def test_remote_babysitters_get_the_tokens_and_no_command_shows_them(tree, machines):
    tokens = {"INFINILM_REGISTRY_TOKEN": "register-me", "INFINILM_ADMIN_TOKEN": "obey-me"}
    tree.env.update(tokens)
    registry = start_registry(tree)
    (machines / "127.0.0.2").mkdir()
    port = mock_config(tree, "mock")
    arguments = ("deploy-remote", "127.0.0.2")
    try:
        code, output = tree.script("deploy_services.sh", *arguments, REGISTRY_URL=registry)
        assert code == 0, output
        wait_until(lambda: "mock-server" in registered(registry), 20, output)
        assert [logs_status(port, token) for token in ("guessed", "obey-me")] == [401, 200]
        shown = output + (machines / "127.0.0.2.commands").read_text()
        assert not [token for token in tokens.values() if token in shown]
    finally:
        tree.run(machines / "127.0.0.2/infinilm-svc/stop_all.sh")


def test_dry_run_shows_every_command_and_runs_none(tree, machines):
    for host in ("192.168.1.10", "192.168.1.11"):
        (machines / host).mkdir()
    code, output = tree.script(
        "deploy_services.sh", "--dry-run", "deploy-remote", REGISTRY_URL="http://10.0.0.1:18000"
    )
    assert code == 0, output
    commands = [line for line in output.splitlines() if line.startswith("+ ")]
    assert [line.split("'")[1] for line in commands] == ["rsync", "ssh", "rsync", "ssh"]
    assert "192.168.1.10:infinilm-svc/" in commands[0]
    assert "BABYSITTER_HOST=192.168.1.11" in commands[3]
    assert "BABYSITTER_REGISTRY_URL=http://10.0.0.1:18000" in commands[3]
    assert "start-services" in commands[3]
    assert not list(machines.glob("*.commands"))


def test_a_machine_that_cannot_be_reached_is_reported_and_the_others_are_deployed(tree, machines):
    (machines / "127.0.0.3").mkdir()
    mock_config(tree, "mock")
    settings = {"REGISTRY_URL": "http://127.0.0.1:1"}
    arguments = ("deploy-remote", "ada@down", "ada@127.0.0.3")
    try:
        code, output = tree.script("deploy_services.sh", *arguments, **settings)
        assert code == 1
        assert "No route to host" in output
        assert output.endswith("not deployed: ada@down\n")
        commands = (machines / "127.0.0.3.commands").read_text()
        assert "BABYSITTER_HOST=127.0.0.3" in commands
    finally:
        tree.run(machines / "127.0.0.3/infinilm-svc/stop_all.sh", STOP_TIMEOUT="5")


def test_a_registry_on_localhost_is_no_address_for_other_machines(tree, machines):
    code, output = tree.script("deploy_services.sh", "--dry-run", "deploy-remote")
    assert code == 64
    assert "which other machines cannot reach: set REGISTRY_URL=" in output


@pytest.mark.parametrize("folder", ["", "/", ".", "./", "~", "~/.", "x/../..", ".."])
def test_a_remote_folder_with_other_things_in_it_is_refused(tree, machines, folder):
    code, output = tree.script(
        "deploy_services.sh",
        *("--dry-run", "deploy-remote", "somewhere"),
        REMOTE_DIR=folder,
        REGISTRY_URL="http://10.0.0.1:1",
    )
    assert code == 64
    assert "it must be a folder of its own" in output


def test_start_services_starts_what_the_files_name_for_this_machine(tree):
    registry = start_registry(tree)
    services_file(tree, "server1_services.json", ("gpu1", "localhost", 1), ("far", "10.9.9.9", 2))
    mock_config(tree, "gpu1", registry)
    code, output = tree.script("deploy_services.sh", "start-services")
    assert code == 0, output
    assert [name for name in tree.pid_files() if "mock" in name or "far" in name] == []
    several = f"http://127.0.0.1:{free_port()},{registry}"
    code, output = tree.script("deploy_services.sh", "status", REGISTRY_URL=several)
    assert code == 0, output
    assert re.search(r"babysitter_gpu1_\d+ +ready at http://", output)
    assert re.search(r"gpu1-server +http://localhost:\d+ \(healthy\)", output)
    code, output = tree.script("deploy_services.sh", "stop-all")
    assert code == 0, output
    code, output = tree.script("deploy_services.sh", "status")
    assert code == 3
    assert "nothing was started here" in output


def test_a_machine_goes_by_the_name_that_it_is_deployed_under(tree):
    services_file(tree, "server1_services.json", ("ours", "gpu.alias", 1), ("far", "10.9.9.9", 2))
    code, output = tree.script("deploy_services.sh", "start-services", BABYSITTER_HOST="gpu.alias")
    assert code == 64
    assert "lacks ours.toml" in output


def test_a_service_without_a_babysitter_file_is_a_usage_error(tree):
    services_file(tree, "server1_services.json", ("gpu1", "localhost", 1), ("gpu2", "localhost", 2))
    code, output = tree.script("deploy_services.sh", "start-services")
    assert code == 64
    assert "lacks gpu1.toml gpu2.toml" in output


def test_faulty_service_files_are_all_reported(tree):
    tree.write("deployment_configs/server1_services.json", "{")
    tree.write("deployment_configs/server2_services.json", '{"services": [{"host": "h"}]}')
    code, output = tree.script("deploy_services.sh", "start-services")
    assert code == 64
    assert "server1_services.json: not readable as JSON" in output
    assert "server2_services.json: expected" in output


def test_generate_config_takes_engines_from_the_registry_and_else_from_the_file(tree):
    registry = start_registry(tree)
    port = registry.rsplit(":", 1)[1]
    output_file = tree.root.parent / "nginx_distributed.conf"
    code, output = tree.script("deploy_services.sh", "-r", port, "generate-config")
    assert code == 1
    assert "has no healthy engine" in output
    engine = mock_config(tree, "gpu1", registry)
    config = tree.root / "deployment_configs/babysitters/gpu1.toml"
    code, output = tree.script("launch_babysitter.sh", config)
    assert code == 0, output
    code, output = tree.script("deploy_services.sh", "-r", port, "-p", "8077", "generate-config")
    assert code == 0, output
    text = output_file.read_text()
    assert "listen 8077;" in text
    assert re.findall(r"server (\S+:\d+) ", text) == [f"localhost:{engine}"]
    for weight, shown in ((0, "down"), (0.3, "weight=1"), (3, "weight=3")):
        body = json.dumps({"weight": weight}).encode()
        put = urllib.request.Request(f"{registry}/services/gpu1-server", body, method="PUT")
        with urllib.request.urlopen(put, timeout=5) as answer:
            assert answer.status == 200
        assert tree.script("deploy_services.sh", "-r", port, "generate-config")[0] == 0
        assert f"server localhost:{engine} {shown} " in output_file.read_text()
    static = {"static_services": {"services": [{"host": "10.1.1.1", "port": 5001}]}}
    tree.write("deployment_configs/router_config.json", json.dumps(static))
    code, output = tree.script("deploy_services.sh", "-r", str(free_port()), "generate-config")
    assert code == 0, output
    assert "server 10.1.1.1:5001 " in output_file.read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "a command is needed"),
        (["fly"], "unknown command fly"),
        (["-x", "status"], "unknown option -x"),
        (["status", "-c"], "-c needs a value"),
        (["status", "-c", "/no/such/folder"], "there is no folder"),
        (["stop-all", "now"], "takes no arguments"),
    ],
)
def test_wrong_usage_ends_with_64_and_says_why(tree, arguments, reason):
    code, output = tree.script("deploy_services.sh", *arguments)
    assert code == 64
    assert reason in output
