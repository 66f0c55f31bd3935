"""Which of the two routers the scripts start, and what they say about it."""

import json
import re
import shutil
import signal
import subprocess
import urllib.request
import venv

import pytest

from rig.bare_machine import (
    RUST,
    add_cargo,
    build_earlier,
    configure,
    failing_build,
    install,
    launched,
    running_implementation,
)
from rig.processes import ROOT, free_port
from rig.routers import router_names


def test_auto_takes_a_program_that_is_named(bare):
    program = bare.program("my router", RUST)
    line = launched(bare, INFINILM_ROUTER_BIN=str(program))
    assert line == f"rust (named by INFINILM_ROUTER_BIN: {program})"


def test_auto_takes_what_was_built_earlier_when_there_is_no_cargo(bare):
    build_earlier(bare)
    line = launched(bare)
    program = bare.root / "router-rust/target/release/infini-router"
    assert line == f"rust (built earlier, no cargo here to look for changes: {program})"


def test_auto_takes_an_installed_wheel_when_there_is_no_cargo(bare):
    install(bare)
    program = bare.root / "an environment/bin/infini-router"
    line = launched(bare)
    assert line == f"rust (found on the PATH, no cargo to build it: {program})"


def nothing(tree) -> None:
    pass


def old_cargo(tree) -> None:
    add_cargo(tree)
    tree.env["CARGO_STAND_IN"] = "1.60.0 (old)"


def cargo_without_toolchain(tree) -> None:
    """What rustup leaves on the PATH before a toolchain is installed."""
    cargo = tree.program("cargo's folder/cargo", "#!/bin/sh\nexit 1\n")
    tree.env["PATH"] = tree.system_path(cargo.parent)


def program_of_another_machine(tree) -> None:
    tree.program("router-rust/target/release/infini-router", "#!/no/such/interpreter\n")


WITHOUT_RUST = pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (nothing, r"there is no infini-router, and no cargo to build it"),
        (old_cargo, r"there is no infini-router, and no cargo 1\.\d+ \(but 1\.60\.0\) to build it"),
        (cargo_without_toolchain, r"there is no infini-router, and no cargo that runs to build it"),
        (failing_build, r"it could not be built, see \S.*/logs/router_build.log"),
        (program_of_another_machine, r"\S.*/infini-router, built earlier, .*, does not run"),
    ],
)


@WITHOUT_RUST
def test_auto_takes_python_where_rust_is_not_to_be_had_and_says_why(bare, machine, reason):
    machine(bare)
    line = launched(bare)
    assert re.fullmatch(rf"python \(the Rust one is not available: {reason}\)", line), line


@WITHOUT_RUST
def test_rust_asked_for_by_name_ends_with_69_where_it_is_not_to_be_had(bare, machine, reason):
    machine(bare)
    code, output = bare.script("launch_router.sh", "--implementation", "rust")
    assert code == 69
    expected = rf"error: the Rust router is asked for \(--implementation\), but {reason}\. "
    assert re.search(expected, output), output
    assert bare.pid_files() == []


def test_a_program_named_in_the_environment_that_does_not_run_is_not_passed_over(bare):
    install(bare)
    environment = {"INFINILM_ROUTER_BIN": "/no/such/router"}
    line = launched(bare, **environment)
    reason = "/no/such/router, named by INFINILM_ROUTER_BIN, does not run"
    assert line == f"python (the Rust one is not available: {reason})"
    code, output = bare.script("launch_router.sh", "--implementation=rust", **environment)
    assert code == 69
    assert reason in output


def test_the_flag_wins_over_the_environment_and_that_over_the_file(bare):
    configure(bare, implementation="python")
    build_earlier(bare)
    config = bare.root / "deployment_configs/router_config.json"
    assert launched(bare) == f"python (as router.implementation in {config} says)"
    bare.env["ROUTER_IMPLEMENTATION"] = "rust"
    assert launched(bare).startswith("rust (built earlier")
    assert launched(bare, "--implementation=python") == "python (as --implementation says)"
    assert launched(bare, "--implementation", "auto").startswith("rust (built earlier")


def test_rust_named_in_the_file_is_meant(bare):
    configure(bare, implementation="rust")
    code, output = bare.script("launch_router.sh")
    assert code == 69
    assert "asked for (router.implementation in " in output


@pytest.mark.parametrize(
    ("command", "origin"),
    [
        (["launch_router.sh", "--implementation=cobol"], "--implementation"),
        (["launch_all.sh", "--implementation", "cobol"], "--implementation"),
        (["deploy_services.sh", "--implementation", "cobol", "start-router"], "--implementation"),
        (["env", "ROUTER_IMPLEMENTATION=cobol", "launch_router.sh"], "ROUTER_IMPLEMENTATION"),
        (["env", "ROUTER_IMPLEMENTATION=cobol", "launch_all.sh"], "ROUTER_IMPLEMENTATION"),
    ],
)
def test_an_unknown_implementation_is_a_usage_error_before_anything_starts(tree, command, origin):
    code, output = tree.run(*(tree.root / w if w.endswith(".sh") else w for w in command))
    assert code == 64
    assert f"error: {origin} is 'cobol'; it can be auto, python or rust." in output
    assert tree.pid_files() == []


def test_an_unknown_implementation_in_the_file_is_named_with_the_file(bare):
    configure(bare, implementation=7)
    code, output = bare.script("launch_router.sh")
    assert code == 64
    assert "router.implementation in " in output
    assert "router_config.json is '7'; it can be auto, python or rust." in output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--implementation"], "--implementation needs a value"),
        (["--implementation", "python", "now"], "nothing else, not: now"),
    ],
)
def test_launch_all_refuses_other_arguments(tree, arguments, reason):
    code, output = tree.script("launch_all.sh", *arguments)
    assert code == 64
    assert reason in output
    assert tree.pid_files() == []


def use_free_ports(tree) -> None:
    registry, router, engine = free_port(), free_port(), free_port()
    quick = {"registry_sync_interval": 0.2, "health_interval": 0.2}
    configure(tree, port=router, registry_url=f"http://localhost:{registry}", **quick)
    tree.env.update(REGISTRY_PORT=str(registry))
    mock = tree.root / "deployment_configs/babysitters/mock.toml"
    text = mock.read_text().replace("8100", str(engine)).replace("18000", str(registry))
    text = text.replace("localhost:8000", f"localhost:{router}")
    quick_engine = "[babysitter]\ndrain_settle = 0.1\nprobe_interval = 0.1\n[backend]"
    text = text.replace("[backend]", quick_engine)
    mock.write_text(text.replace("# tokens_per_second = 50", "tokens_per_second = 1000"))


def test_launch_all_serves_with_either_router_and_nothing_else_changes(tree):
    use_free_ports(tree)
    for name in router_names():
        code, output = tree.script("launch_all.sh", "--implementation", name)
        assert code == 0, output
        assert f"router: using {name} (" in output
        assert running_implementation(tree) == name
        curl = next(line for line in output.splitlines() if line.startswith("curl -N http"))
        code, answer = tree.run("bash", "-c", curl)
        assert code == 0
        assert "data: [DONE]" in answer, answer
        assert (tree.logs / "router.pid").exists()
        code, output = tree.script("stop_all.sh")
        assert code == 0, output


def test_a_running_router_stays_and_who_wants_the_other_one_is_told(bare):
    build_earlier(bare)
    code, output = bare.script("launch_router.sh", "--implementation=python")
    assert code == 0, output
    pid = bare.pid("router")
    code, output = bare.script("launch_router.sh", "--implementation=rust")
    assert code == 0, output
    assert f"router: already running (pid {pid}, python)" in output
    assert "not the rust one that is asked for (--implementation): add --replace" in output
    assert "using" not in output
    code, output = bare.script("launch_router.sh")
    assert code == 0, output
    assert "asked for" not in output
    assert bare.pid("router") == pid


def test_deploy_services_takes_it_too(bare):
    build_earlier(bare)
    configure(bare, implementation="python")
    code, output = bare.script("deploy_services.sh", "--implementation", "rust", "start-router")
    assert code == 0, output
    assert "router: using rust (built earlier" in output


def test_the_container_takes_it_from_the_environment(bare):
    install(bare)
    environment = {"LAUNCH_COMPONENTS": "router", "ROUTER_IMPLEMENTATION": "rust"}
    container = bare.popen(bare.root / "docker_entrypoint.sh", **environment)
    for line in container.stdout:
        if "using" in line:
            assert line.startswith("router: using rust (found on the PATH"), line
        if "running:" in line:
            break
    container.send_signal(signal.SIGTERM)
    output, _ = container.communicate(timeout=30)
    assert container.returncode == 0, output


def test_the_rust_router_keeps_its_last_good_list_with_the_logs(bare):
    """Its program may lie anywhere; the folder is the scripts' business."""
    build_earlier(bare)
    assert bare.script("launch_router.sh")[0] == 0
    log = next(bare.logs.glob("router_*.log")).read_text()
    assert f"--state-dir {bare.logs}" in log
    assert bare.script("stop_router.sh")[0] == 0
    configure(bare, state_dir="")
    assert bare.script("launch_router.sh", LOG_DIR=str(bare.root / "other"))[0] == 0
    log = next((bare.root / "other").glob("router_*.log")).read_text()
    assert "--state-dir" not in log
    assert bare.script("stop_router.sh", LOG_DIR=str(bare.root / "other"))[0] == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("cargo") is None, reason="a wheel is built with cargo")
def test_a_wheel_puts_the_rust_router_on_the_path(bare, tmp_path):
    environment = tmp_path / "a fresh environment"
    venv.create(environment, with_pip=True)
    pip = [environment / "bin/python", "-m", "pip", "install", "--no-cache-dir"]
    subprocess.run([*pip, ROOT / "router-rust"], check=True, timeout=1700)
    path = bare.system_path(environment / "bin")
    code, output = bare.script("launch_router.sh", PATH=path)
    assert code == 0, output
    program = environment / "bin/infini-router"
    assert f"router: using rust (found on the PATH, no cargo to build it: {program})" in output
    url = re.search(r"ready at (\S+)", output).group(1)
    with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
        assert json.load(answer)["router"] == "running"
