import json
import subprocess
import sys
from pathlib import Path

import pytest

from infinilm_babysitter.checks import ConfigError
from infinilm_babysitter.config import Config, check_config
from infinilm_babysitter.flags import read_settings
from rig.processes import ROOT

PROGRAM = ROOT / "babysitter/enhanced_babysitter.py"
SHIPPED = sorted((ROOT / "deployment_configs/babysitters").rglob("*.toml"))

TEN_FAULTS = """
name = "no blanks please"
prot = 8100
port = 70000
registry_url = "ftp://registry"
models = "m"
api_key_file = "/does/not/exist"
weight = 0
[babysitter]
restart_delay = -1
max_restarts = 1.5
start_timout = 5
[backend]
type = "vllm"
args = "--one text"
modle = "m"
[backend.env]
N = 1
"""


def config_of(*flags: str) -> Config:
    settings = read_settings(flags)
    return check_config(settings.raw, file=settings.file, flags=settings.flags)


def program(*flags: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(PROGRAM), *map(str, flags)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd="/", check=False)


def faults_of(*flags: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        config_of(*flags)
    return {fault.key: fault.reason for fault in caught.value.faults}


def toml_file(tmp_path: Path, text: str) -> str:
    file = tmp_path / "b.toml"
    file.write_text(text)
    return str(file)


def test_all_faults_of_a_file_are_told_at_once_with_exit_64(tmp_path: Path) -> None:
    file = toml_file(tmp_path, TEN_FAULTS)
    done = program("--config-file", file, "--check-config")
    assert done.returncode == 64
    lines = done.stderr.splitlines()
    keys = {line.removeprefix(f"error: {file}: ").split(" = ")[0].split(":")[0] for line in lines}
    assert keys == {
        *("name", "prot", "port", "registry_url", "models", "api_key_file", "weight"),
        *("babysitter.restart_delay", "babysitter.max_restarts", "babysitter.start_timout"),
        *("backend.args", "backend.model", "backend.modle", "backend.env.N"),
    }
    assert "babysitter.start_timout = 5: is not a known key here; did you mean start_timeout?" in (
        done.stderr
    )
    assert "port = 70000: must be a whole number" in done.stderr


def test_faults_of_flags_name_the_flag() -> None:
    faults = faults_of("--port", "eighty", "--path", "/m", "--ndev", "0", "--max-restarts", "x")
    assert set(faults) == {"--port", "--ndev", "--max-restarts"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [("= broken", "is not TOML"), ("\ufffd".encode("utf-16").decode("latin-1"), "is not TOML")],
)
def test_a_file_that_is_no_toml_is_one_fault(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in faults_of("--config-file", toml_file(tmp_path, text))["file"]


def test_a_missing_file_and_an_unknown_flag_exit_64() -> None:
    assert program("--config-file", "/no/such.toml").returncode == 64
    done = program("--path", "/m", "--frobnicate", "--port", "x")
    assert done.returncode == 64
    assert "--frobnicate: is not a known flag" in done.stderr


@pytest.mark.parametrize(
    "token", ["canary token", "canary\n", " canary", "canary-\u00e9", "canary-\udcff", "\t"]
)
def test_a_token_that_no_header_can_carry_is_a_fault_beside_the_others(
    monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    names = {"INFINILM_REGISTRY_TOKEN", "INFINILM_ADMIN_TOKEN"}
    for name in names:
        monkeypatch.setenv(name, token)
    done = program("--path", "/m", "--port", "x", "--check-config")
    assert done.returncode == 64
    faults = [line.split(": ")[1:3] for line in done.stderr.splitlines()]
    assert {key for where, key in faults if where == "environment"} == names
    assert "--port" in done.stderr
    assert "canary" not in done.stderr


def test_tokens_that_a_header_can_carry_and_empty_ones_are_fine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INFINILM_REGISTRY_TOKEN", "".join(map(chr, range(ord("!"), 127))))
    monkeypatch.setenv("INFINILM_ADMIN_TOKEN", "")
    assert config_of("--path", "/m").port == 5000


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_configurations_are_accepted(file: Path) -> None:
    shown = config_of("--config-file", str(file)).as_json()
    assert shown["backend"] == file.stem
    assert json.loads(json.dumps(shown))["launch"]["argv"]


def test_check_config_prints_json_from_any_directory() -> None:
    done = program("--config-file", SHIPPED[-1], "--check-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["name"] == "infinilm-mock-8100"


def test_every_backend_type_has_an_example() -> None:
    from infinilm_babysitter.backends import BACKENDS

    assert {file.stem for file in SHIPPED} == set(BACKENDS)


def test_the_old_command_line_has_its_old_defaults() -> None:
    config = config_of("--path", "/models/9g8b")
    assert (config.name, config.port, config.host) == ("infinilm-infinilm-5000", 5000, "localhost")
    assert (config.restarts.max_restarts, config.restarts.first_delay) == (10, 5)
    assert config.service_type == "InfiniLM"
    assert config.registry_urls == ()


def test_a_file_has_the_newer_defaults(tmp_path: Path) -> None:
    text = 'port = 8100\n[backend]\ntype = "mock"\nmodels = ["m"]\n'
    config = config_of("--config-file", toml_file(tmp_path, text))
    assert config.name == "infinilm-mock-8100"
    assert (config.restarts.max_restarts, config.restarts.first_delay) == (10000, 1)
    assert config.timing.heartbeat_interval == 10


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    text = 'name = "a"\nport = 1\nregistry_url = "http://a:1"\n[babysitter]\nmax_restarts = 1\n'
    file = toml_file(tmp_path, text + '[backend]\ntype = "vllm"\nmodel = "m"\n')
    flags = ("-p", "2", "-n", "b", "--registry", "http://b:2/", "--max-restarts", "3")
    config = config_of("--config-file", file, *flags, "--path", "n", "--restart-delay", "0.5")
    assert (config.name, config.port, config.registry_urls) == ("b", 2, ("http://b:2",))
    assert (config.restarts.max_restarts, config.restarts.first_delay) == (3, 0.5)
    assert config.launch.argv[3:5] == ("--model", "n")


@pytest.mark.parametrize(
    ("flags", "urls"),
    [
        (("--registry", "http://a:1"), ("http://a:1",)),
        (("--registry-url", "http://a:1, http://b:2"), ("http://a:1", "http://b:2")),
    ],
)
def test_both_spellings_of_the_registry_flag_work(
    flags: tuple[str, ...], urls: tuple[str, ...]
) -> None:
    assert config_of("--path", "/m", *flags).registry_urls == urls


def test_both_spellings_of_the_router_flag_work() -> None:
    for flag in ("--router", "--router-url"):
        assert config_of("--path", "/m", flag, "http://r:1").router_urls == ("http://r:1",)


@pytest.mark.parametrize(
    "url", ["localhost:1", "http://", "http://u:p@h:1", "http://h:1/?q", "http://h:99999"]
)
def test_a_registry_url_that_is_none_is_a_fault(url: str) -> None:
    assert "--registry-url" in faults_of("--path", "/m", "--registry-url", url)


def test_the_service_type_may_not_contradict_the_file(tmp_path: Path) -> None:
    file = toml_file(tmp_path, 'port = 1\n[backend]\ntype = "vllm"\nmodel = "m"\n')
    faults = faults_of("--config-file", file, "--service-type", "InfiniLM-Rust")
    assert "the file's backend is vllm" in faults["--service-type"]


def test_flags_without_meaning_for_the_engine_are_noted_not_refused() -> None:
    flags = ("--service-type", "InfiniLM-Rust", "--path", "c.toml", "--dev", "metax", "--awq")
    assert read_settings(flags).notes == (
        "--dev means nothing to backend infinilm-rust",
        "--awq means nothing to backend infinilm-rust",
    )


def test_the_command_flags_of_the_later_version_work() -> None:
    config = config_of(
        *("--command", "run me", "--args", "--a 'b c'", "--work-dir", "/w"),
        *("--env", "A=1", "B=x=y", "--port", "7000"),
    )
    assert config.launch.argv == ("run", "me", "--a", "b c")
    assert (config.launch.cwd, config.launch.env) == ("/w", {"A": "1", "B": "x=y"})
    assert config.name == "infinilm-command-7000"


def test_check_config_hides_secrets(tmp_path: Path) -> None:
    text = """
    port = 1
    [backend]
    type = "command"
    command = "engine"
    args = ["--api-key", "canary-1", "--token=canary-2", "--max-tokens", "512", "x-canary-3"]
    env = { HF_TOKEN = "canary-3", PLAIN = "shown" }
    """
    done = program("--config-file", toml_file(tmp_path, text), "--check-config")
    assert "canary" not in done.stdout
    launch = json.loads(done.stdout)["launch"]
    assert launch["argv"] == ["engine", "--api-key", "***", "--token=***", *launch["argv"][4:]]
    assert launch["argv"][4:] == ["--max-tokens", "512", "x-***"]
    assert launch["env"] == {"HF_TOKEN": "***", "PLAIN": "shown"}


def test_metadata_takes_any_values_and_dates_become_text(tmp_path: Path) -> None:
    text = """
    port = 1
    max_concurrency = 4
    [backend]
    type = "mock"
    models = ["m"]
    [metadata]
    since = 2026-04-16
    nested = { list = [1, 2.5, true] }
    """
    assert config_of("--config-file", toml_file(tmp_path, text)).metadata == {
        "max_concurrency": 4,
        "since": "2026-04-16",
        "nested": {"list": [1, 2.5, True]},
    }


def test_a_stalled_engine_is_restarted_only_when_that_is_asked_for(tmp_path: Path) -> None:
    text = 'port = 8100\n[backend]\ntype = "mock"\nmodels = ["m"]\n'
    file = toml_file(tmp_path, text)
    config = config_of("--config-file", file)
    assert (config.restart_when_stalled, config.timing.stalled_after) == (False, 120)
    assert config.timing.gpu_free_timeout == 60
    assert config.timing.models_interval <= 30, "R24: a change of models is seen within 30 s"
    flags = ("--restart-when-stalled", "--stalled-after", "300", "--gpu-free-timeout", "5")
    config = config_of("--config-file", file, *flags)
    assert (config.restart_when_stalled, config.timing.stalled_after) == (True, 300)
    assert config.timing.gpu_free_timeout == 5
