import json
from pathlib import Path

import pytest

from infinilm_registry.cli import main
from infinilm_registry.config import DEFAULT_STORE, ConfigError, RegistryConfig, load
from infinilm_registry.entry import LeaseTerms
from rig.processes import ROOT, Programs


def faults_of(
    arguments: list[str], environment: dict[str, str] | None = None
) -> set[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        load(arguments, environment or {})
    return {(fault.where, fault.key) for fault in caught.value.faults}


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.json",
        {
            "registry": {
                "port": 1,
                "health_interval": 2,
                "cleanup_interval": 3.5,
                "health_timeout": 4,
            }
        },
    )
    environment = {"INFINILM_REGISTRY_PORT": "10", "INFINILM_REGISTRY_HEALTH_INTERVAL": "20"}
    config = load(["--config", file, "--port", "100"], environment).config
    values = (config.port, config.health_interval, config.cleanup_interval, config.health_timeout)
    assert values == (100, 20, 3.5, 4)


def test_the_defaults_are_those_of_the_contract() -> None:
    config = load([], {}).config
    assert (config.port, config.health_interval, config.health_timeout) == (8081, 30, 5)
    assert (config.cleanup_interval, config.heartbeat_timeout, config.removal_timeout) == (
        60,
        120,
        300,
    )
    assert config.store == DEFAULT_STORE == str(ROOT / "logs" / "registry.sqlite3")


def test_ten_faults_of_one_file_are_reported_at_once_with_file_key_value_and_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "port": 70_000,
        "host": "not a host",
        "health_interval": 0,
        "health_timeout": "soon",
        "cleanup_interval": -1,
        "heartbeat_timeout": True,
        "allowed_networks": ["10.0.0.1/8"],
        "store": str(tmp_path),
        "max_services": 1.5,
        "helth_interval": 5,
    }
    file = write(tmp_path / "c.json", {"registry": wrong})
    assert main(["--config", file]) == 64
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    for key, value in wrong.items():
        (line,) = (line for line in lines if f" registry.{key} = {json.dumps(value)}: " in line)
        assert line.startswith(f"{file}: ")
    assert "did you mean health_interval?" in "\n".join(lines)


def test_faults_of_flags_environment_and_file_come_together(tmp_path: Path) -> None:
    file = write(tmp_path / "c.json", {"registry": {"port": "x"}, "other": 1})
    flags = ["--config", file, "--write-rate", "0", "--nonsense", "--store", "etcd://u@h:2379"]
    assert faults_of(
        flags, {"INFINILM_REGISTRY_HOST": ""} | {"INFINILM_REGISTRY_STORE": "x://"}
    ) == {
        (file, "registry.port"),
        (file, "other"),
        ("command line", "--write-rate"),
        ("command line", "--store"),
        ("command line", ""),
        ("environment", "INFINILM_REGISTRY_STORE"),
    }


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"registry": []}', "[" * 100_000])
def test_a_file_that_is_no_configuration_is_a_fault(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content)
    assert faults_of(["--config", str(tmp_path / "c.json")]) == {(str(tmp_path / "c.json"), "")}


def test_a_missing_file_and_a_missing_value_are_faults(tmp_path: Path) -> None:
    assert faults_of(["--config", str(tmp_path / "none")]) == {(str(tmp_path / "none"), "")}
    assert faults_of(["--port"]) == {("command line", "")}


def test_removal_before_the_heartbeat_limit_is_a_fault() -> None:
    flags = ["--heartbeat-timeout", "10", "--removal-timeout", "5"]
    assert faults_of(flags) == {("settings together", "removal_timeout")}


def test_the_port_variable_that_kubernetes_sets_is_not_ours() -> None:
    environment = {"INFINILM_REGISTRY_PORT": "tcp://10.0.0.1:8081"}
    assert load([], environment).config.port == 8081


def test_check_config_prints_the_effective_settings_and_no_secret(run: Programs) -> None:
    program = run.python(
        "registry/service_registry.py",
        *("--check-config", "--port", "0", "--allowed-networks", "10.0.0.0/8, fd00::/8"),
        env={"INFINILM_REGISTRY_TOKEN": "hush", "INFINILM_REGISTRY_STORE": "memory"},
    )
    assert program.wait() == 0
    printed = json.loads(program.output)
    assert printed["allowed_networks"] == ["10.0.0.0/8", "fd00::/8"]
    assert (printed["port"], printed["store"], printed["token_set"]) == (0, "memory", True)
    assert "hush" not in program.output


def test_a_number_of_any_length_is_judged(tmp_path: Path) -> None:
    file = write(tmp_path / "c.json", {"registry": {"health_interval": 10**400}})
    assert faults_of(["--config", file]) == {(file, "registry.health_interval")}


@pytest.mark.parametrize("token", ["secret ", "secret\n", "two words", "sécret", "секрет"])
def test_a_token_that_no_header_can_carry_is_a_fault_and_is_not_shown(
    token: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFINILM_REGISTRY_TOKEN", token)
    assert main(["--check-config", "--port", "x"]) == 64
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "INFINILM_REGISTRY_TOKEN must be" in lines[1]
    assert token.strip() not in "".join(lines)


def test_the_limits_and_times_of_a_registry_that_nobody_configured() -> None:
    config, terms = RegistryConfig(), LeaseTerms()
    assert (config.max_services, config.write_rate) == (10_000, 50)
    assert (config.heartbeat_timeout, config.removal_timeout) == (120, 300)
    assert (terms.heartbeat_timeout, terms.removal_timeout) == (120, 300)
