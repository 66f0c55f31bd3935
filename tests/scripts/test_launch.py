"""The launch and stop scripts with the real programs."""

import json
import os
import re
import shlex
import signal
import socket
import sys
from pathlib import Path

import pytest

from rig.processes import free_port, wait_until

ENGINE = Path(__file__).with_name("engine_stand_in.py")
QUICK_ROUTER = '"drain_delay": 0.1, "registry_sync_interval": 0.2, "health_interval": 0.2'
QUICK_BABYSITTER = "[babysitter]\ndrain_settle = 0.1\nprobe_interval = 0.1\n[backend]"
SHIPPED_PORTS = {"registry": "18000", "router": "8000", "engine": "8100"}


def use_free_ports(tree) -> dict[str, int]:
    """Other ports, a short drain and a fast engine in the shipped files that scripts go by."""
    ports = {name: free_port() for name in SHIPPED_PORTS}
    for name in ("registry_config.json", "router_config.json", "babysitters/mock.toml"):
        path = tree.root / "deployment_configs" / name
        text = path.read_text()
        for service, shipped in SHIPPED_PORTS.items():
            text = re.sub(rf"\b{shipped}\b", str(ports[service]), text)
        text = text.replace('"router": {', f'"router": {{{QUICK_ROUTER},')
        text = text.replace("[backend]", QUICK_BABYSITTER)
        text = text.replace("# tokens_per_second = 50", "tokens_per_second = 1000")
        path.write_text(text)
    return ports


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def names_running(tree) -> list[str]:
    return [name.removesuffix(".pid") for name in tree.pid_files()]


def check_nothing_is_left(tree, ports, processes_of) -> None:
    assert tree.pid_files() == []
    assert processes_of(tree) == []
    assert all(is_free(port) for port in (*ports.values(), ports["engine"] + 1))


def check_a_second_launch_skips_all(tree) -> None:
    pids = {name: tree.pid(name) for name in names_running(tree)}
    code, output = tree.script("launch_all.sh")
    assert code == 0, output
    assert output.count("already running") == len(pids) == 3
    assert {name: tree.pid(name) for name in names_running(tree)} == pids


def pasted_curl(output: str) -> str:
    return next(line for line in output.splitlines() if line.startswith("curl -N http"))


def test_launch_all_then_its_curl_streams_then_stop_all_leaves_nothing_twice(tree, processes_of):
    ports = use_free_ports(tree)
    services = [f"babysitter_mock_{ports['engine']}", "registry", "router"]
    for _ in range(2):
        code, output = tree.script("launch_all.sh")
        assert code == 0, output
        assert names_running(tree) == services
        for port in (ports["registry"], ports["router"], ports["engine"] + 1):
            assert re.search(rf"http://\S+:{port} +pid \d+", output), output
        code, answer = tree.run("bash", "-c", pasted_curl(output))
        assert code == 0
        assert "data: [DONE]" in answer, answer
        check_a_second_launch_skips_all(tree)
        code, output = tree.script("stop_all.sh")
        assert code == 0, output
        check_nothing_is_left(tree, ports, processes_of)
    assert tree.script("stop_all.sh") == (0, "router: not running\nregistry: not running\n")


def test_every_port_and_folder_can_be_set_in_the_environment(tree, tmp_path):
    ports = use_free_ports(tree)
    registry, router = free_port(), free_port()
    environment = {
        "REGISTRY_PORT": str(registry),
        "ROUTER_PORT": str(router),
        "LOG_DIR": str(tmp_path / "other logs"),
    }
    code, output = tree.script("launch_all.sh", **environment)
    assert code == 0, output
    assert f"curl -N http://127.0.0.1:{router}/" in output
    assert is_free(ports["registry"])
    assert is_free(ports["router"])
    assert list(tree.logs.glob("*")) == []
    assert (tmp_path / "other logs/registry.sqlite3").exists()
    assert tree.script("stop_all.sh", LOG_DIR=environment["LOG_DIR"])[0] == 0
    assert is_free(registry)
    assert is_free(router)


def test_scripts_work_through_a_symbolic_link_from_any_folder(tree, tmp_path):
    use_free_ports(tree)
    link = tmp_path / "start the registry"
    link.symlink_to(tree.root / "launch_registry.sh")
    code, output = tree.run(link)
    assert code == 0, output
    assert names_running(tree) == ["registry"]
    assert tree.script("stop_registry.sh")[0] == 0


def test_arguments_are_passed_on_and_win(tree):
    use_free_ports(tree)
    port = free_port()
    code, output = tree.script("launch_registry.sh", "--port", str(port), "--store", "memory")
    assert code == 0, output
    assert f"registry: ready at http://127.0.0.1:{port}" in output


def test_one_babysitter_file_starts_an_engine_on_each_port_that_is_given(tree):
    use_free_ports(tree)
    first, second = free_port(), free_port()
    mock = tree.root / "deployment_configs/babysitters/mock.toml"
    for flags in (["--port", str(first)], [f"--port={second}"]):
        code, output = tree.script("launch_babysitter.sh", mock, *flags)
        assert code == 0, output
    assert names_running(tree) == sorted(f"babysitter_mock_{port}" for port in (first, second))


def failing_babysitter(tree) -> Path:
    return tree.write(
        "broken.toml",
        f"port = {free_port()}\n[babysitter]\nmax_restarts = 0\n"
        '[backend]\ntype = "no-such-engine"\n',
    )


def test_when_one_part_fails_what_was_started_is_stopped_and_the_rest_stays(tree):
    use_free_ports(tree)
    assert tree.script("launch_registry.sh")[0] == 0
    broken = failing_babysitter(tree)
    code, output = tree.script(
        "launch_all.sh", BABYSITTER_CONFIGS=f"{broken.name} mock.toml", LAUNCH_ROUTER="false"
    )
    assert code != 0
    assert "babysitter_broken_" in output
    assert "no-such-engine" in output
    assert "stopping what this call started" in output
    assert names_running(tree) == ["registry"]


def test_a_terminal_that_is_closed_leaves_nothing_half_started(tree, processes_of):
    use_free_ports(tree)
    loading = f'port = {free_port()}\n[backend]\ntype = "command"\ncommand = "sleep 1000"\n'
    tree.write("loading.toml", loading)
    alone = {"BABYSITTER_CONFIGS": "loading.toml", "LAUNCH_ROUTER": "false"}
    process, terminal = tree.at_terminal("launch_all.sh", **alone)
    wait_until(lambda: len(tree.pid_files()) == 2, 30, "the engine's launch began")
    os.close(terminal)
    assert process.wait(30) != 0
    assert (tree.pid_files(), processes_of(tree)) == ([], [])


def test_a_babysitter_config_that_does_not_exist_stops_everything_before_it_starts(tree):
    use_free_ports(tree)
    code, output = tree.script("launch_all.sh", BABYSITTER_CONFIGS="mock.toml nowhere.toml")
    assert code == 64
    assert "nowhere.toml" in output
    assert tree.pid_files() == []


def test_a_faulty_config_file_is_reported_by_the_program_with_exit_code_64(tree):
    tree.write("bad.json", json.dumps({"registry": {"port": "many", "colour": "red"}}))
    code, output = tree.script("launch_registry.sh", REGISTRY_CONFIG=str(tree.root / "bad.json"))
    assert code == 64
    assert "port" in output
    assert "colour" in output
    assert tree.pid_files() == []


@pytest.mark.parametrize("asked", ["PORT", "mock", "mock_PORT"])
def test_stop_babysitter_takes_port_or_name(tree, asked):
    ports = use_free_ports(tree)
    mock = tree.root / "deployment_configs/babysitters/mock.toml"
    code, output = tree.script("launch_babysitter.sh", mock)
    assert code == 0, output
    code, output = tree.script("stop_babysitter.sh", "9g8b")
    assert code == 1
    assert f"known here: babysitter_mock_{ports['engine']}" in output
    identity = asked.replace("PORT", str(ports["engine"]))
    code, output = tree.script("stop_babysitter.sh", identity)
    assert code == 0, output
    assert tree.pid_files() == []
    assert is_free(ports["engine"])


def engine_log(tree) -> str:
    return "".join(path.read_text() for path in tree.logs.glob("engine_*.log"))


def test_the_9g8b_script_passes_its_variables_to_infinilm(tree):
    port = free_port()
    launch_server = tree.write("launch_server.py", ENGINE.read_text())
    code, output = tree.script(
        "launch_babysitter_9g8b.sh",
        PORT=str(port),
        REGISTRY_URL="",
        ROUTER_URL="",
        MODEL_PATH=str(tree.root),
        LAUNCH_SCRIPT=str(launch_server),
        NDEV="3",
    )
    assert code == 0, output
    assert names_running(tree) == [f"babysitter_9g8b_{port}"]
    command = engine_log(tree)
    assert f"--model-path {tree.root}" in command
    assert "--ndev 3 " in command
    assert "--max-batch 16" in command
    assert "devices=1" in command


def test_a_launch_script_goes_by_the_urls_of_all_babysitters_and_its_label_is_one_word(tree):
    code, output = tree.script(
        "launch_babysitter.sh",
        *(str(free_port()), "--check-config"),
        BABYSITTER_LABEL="my qwen",
        BABYSITTER_REGISTRY_URL="http://a:1",
        BABYSITTER_ROUTER_URL="http://b:2",
        MODEL_PATH="/models/q",
    )
    assert code == 1
    assert "babysitter_my-qwen_" in output
    [log] = tree.logs.glob("babysitter_my-qwen_*.log")
    shown = log.read_text()
    assert "http://a:1" in shown
    assert "http://b:2" in shown


def test_the_qwen_rust_script_runs_xtask_with_its_config_file(tree):
    port = free_port()
    xtask = tree.write("bin/xtask", f'#!/bin/sh\nexec "{sys.executable}" "{ENGINE}" "$@"\n')
    xtask.chmod(0o755)
    code, output = tree.script(
        "launch_babysitter_qwen_rust.sh",
        PORT=str(port),
        REGISTRY_URL="",
        ROUTER_URL="",
        PATH=f"{xtask.parent}:{tree.env['PATH']}",
    )
    assert code == 0, output
    assert names_running(tree) == [f"babysitter_qwen_{port}"]
    assert f"service {tree.root}/service_qwen.toml -p {port} devices=4,5,6,7" in engine_log(tree)


def health_check(tree) -> int:
    """The exit code of the image's HEALTHCHECK: 0 healthy, 1 not."""
    _, command = (tree.root / "Dockerfile.example").read_text().split("HEALTHCHECK ")
    command = command.split("CMD ")[1].split("\n")[0]
    return int(tree.run("sh", "-c", f'cd "$0" && {command}', tree.root)[0])


def test_the_container_runs_what_it_is_told_until_it_is_stopped(tree, processes_of):
    ports = use_free_ports(tree)
    container = tree.popen(
        tree.root / "docker_entrypoint.sh", LAUNCH_COMPONENTS="registry,babysitter"
    )
    services = [f"babysitter_mock_{ports['engine']}", "registry"]
    wait_until(lambda: names_running(tree) == services, 30, "both services started")
    wait_until(lambda: not is_free(ports["engine"]), 30, "engine listens")
    wait_until(lambda: health_check(tree) == 0, 30, "healthy, though it has no router")
    tree.run("kill", "-STOP", str(tree.pid("registry")))
    assert health_check(tree) == 1
    tree.run("kill", "-CONT", str(tree.pid("registry")))
    container.send_signal(signal.SIGTERM)
    output, _ = container.communicate(timeout=30)
    assert container.returncode == 0, output
    check_nothing_is_left(tree, ports, processes_of)


def test_the_container_ends_when_a_service_does(tree, processes_of):
    ports = use_free_ports(tree)
    container = tree.popen(tree.root / "docker_entrypoint.sh", LAUNCH_COMPONENTS="registry")
    wait_until(lambda: not is_free(ports["registry"]), 30, "registry listens")
    wait_until(lambda: "running:" in container.stdout.readline(), 30, "launched")
    tree.run("kill", "-KILL", str(tree.pid("registry")))
    output, _ = container.communicate(timeout=30)
    assert container.returncode == 1
    assert "registry: ended; its log is" in output
    assert processes_of(tree) == []


def test_a_container_is_not_kept_from_starting_by_pid_files_of_an_earlier_one(tree):
    tree.write("logs/registry.pid", "1\n")  # as earlier versions wrote them
    env = {"LAUNCH_COMPONENTS": "registry", "REGISTRY_PORT": str(free_port())}
    container = tree.popen(tree.root / "docker_entrypoint.sh", **env)
    assert any("running:" in line for line in container.stdout)
    container.send_signal(signal.SIGTERM)
    output, _ = container.communicate(timeout=30)
    assert container.returncode == 0, output


def test_the_container_refuses_unknown_components_and_runs_a_given_command(tree):
    code, output = tree.script("docker_entrypoint.sh", LAUNCH_COMPONENTS="router,database")
    assert code == 64
    assert "'database'" in output
    assert tree.script("docker_entrypoint.sh", "echo", "a b") == (0, "a b\n")


def test_activate_env_gives_the_calling_shell_a_python(tree):
    code, output = tree.run(
        "bash", "-c", f"source {shlex.quote(str(tree.root))}/activate_env.sh; echo on"
    )
    assert (code, output) == (0, f"Python of InfiniLM-SVC: {sys.executable}\non\n")
    assert tree.run("bash", tree.root / "activate_env.sh")[0] == 64
