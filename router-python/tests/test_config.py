import json
from pathlib import Path
from typing import Any

import pytest

from infinilm_router.config import POLICIES, SETTINGS, RouterConfig
from infinilm_router.config_load import ALL_SETTINGS, REPOSITORY, ConfigError, load_config
from infinilm_router.router import selection
from infinilm_router.utils.checks import nginx_seconds


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def load(*argv: str, **environ: str) -> RouterConfig:
    return load_config(argv, environ).config


def faults(*argv: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(argv, environ)
    return [str(fault) for fault in caught.value.faults]


@pytest.fixture
def shipped(tmp_path: Path) -> str:
    """A router_config.json with the keys that existing installations have."""
    router = {
        "port": 8123,
        "registry_url": "http://192.168.1.100:8081",
        "load_balancing_method": "least_conn",
        "proxy_timeout": 300,
        "proxy_connect_timeout": 60,
    }
    backup = {
        "name": "spare",
        "host": "192.168.1.12",
        "port": 5001,
        "weight": 1,
        "metadata": {"static": True, "backup": True, "model": "Qwen3-32B"},
    }
    content = {"router": router, "static_services": {"services": [backup]}}
    return write(tmp_path / "router_config.json", content)


def test_defaults_are_those_that_are_promised() -> None:
    config = load()
    assert (config.router_port, config.health_interval, config.health_timeout) == (8080, 5, 2)
    assert (config.first_byte_timeout, config.response_timeout, config.idle_timeout) == (
        300,
        600,
        120,
    )
    assert config.max_body_bytes == 64 * 1024 * 1024
    assert config.registry_urls == ()


def test_a_shipped_file_is_read_with_all_its_keys(shipped: str) -> None:
    config = load("--config", shipped)
    assert config.router_port == 8123
    assert config.registry_urls == ("http://192.168.1.100:8081",)
    assert config.policy == "least_loaded"
    assert (config.first_byte_timeout, config.response_timeout, config.idle_timeout) == (
        300,
        300,
        300,
    )
    assert config.proxy_connect_timeout == 60
    [spare] = config.static_services
    assert (spare.name, spare.models, spare.backup, spare.source) == (
        "spare",
        ("Qwen3-32B",),
        True,
        "static",
    )
    assert spare.is_engine


def test_flags_win_over_the_environment_and_that_over_the_file(shipped: str) -> None:
    assert load("--config", shipped, PROXY_TIMEOUT_SECONDS="20").idle_timeout == 20
    config = load(
        "--config",
        shipped,
        "--proxy-timeout",
        "7",
        "--idle-timeout",
        "3",
        PROXY_TIMEOUT_SECONDS="9",
    )
    assert (config.first_byte_timeout, config.response_timeout, config.idle_timeout) == (7, 7, 3)
    assert load("--config", shipped, "--router-port", "9").router_port == 9


def test_an_explicit_timeout_of_the_file_wins_over_the_common_one_in_either_order(
    tmp_path: Path,
) -> None:
    for keys in (("idle_timeout", "proxy_timeout"), ("proxy_timeout", "idle_timeout")):
        values = {"idle_timeout": 4, "proxy_timeout": 8}
        file = write(tmp_path / "c.json", {"router": {key: values[key] for key in keys}})
        config = load("--config", file)
        assert (config.idle_timeout, config.first_byte_timeout) == (4, 8)


def test_variables_of_the_later_version_are_honoured_and_empty_ones_are_not_set() -> None:
    config = load(CACHE_TYPE_ROUTING_THRESHOLD="1000", PROXY_TIMEOUT_SECONDS="")
    assert (config.cache_type_routing_threshold, config.idle_timeout) == (1000, 120)


def test_ten_faults_of_a_file_are_reported_at_once_with_file_key_value_and_remedy(
    tmp_path: Path,
) -> None:
    wrong = {
        "port": 70000,
        "registry_url": "ftp://x",
        "load_balancing_method": "prefix_cost",
        "health_interval": "soon",
        "health_fall": 2.5,
        "colour": "red",
        "proxy_paths": ["v2"],
    }
    services = [{"host": "a", "port": 0}, {"host": "http://a", "port": 1, "wieght": 2}]
    content = {"router": wrong, "static_services": {"services": services}, "extra": 1}
    file = write(tmp_path / "bad.json", content)
    found = faults("--config", file)
    assert len(found) == 11
    assert all(text.startswith(f"{file}: ") for text in found)
    for expected in (
        "router.port: 70000: out of range, give a whole number from 0 to 65535",
        'router.registry_url: "ftp://x": not a URL of a registry, give',
        'router.load_balancing_method: "prefix_cost": not known, give one of round_robin, ',
        'router.health_interval: "soon": not a number, give seconds from',
        "router.health_fall: 2.5: not a whole number",
        'router.colour: "red": unknown key, use one of',
        'router.proxy_paths: ["v2"]: not a path prefix',
        "static_services.services[0].port: 0: out of range",
        'static_services.services[1].host: "http://a": not a host',
        "static_services.services[1].wieght: 2: unknown key, use one of name, host",
        "extra: 1: unknown key, use router and static_services",
    ):
        assert any(f"{file}: {expected}" in text for text in found), expected


def test_faults_of_flags_environment_and_files_come_together(tmp_path: Path) -> None:
    static = write(tmp_path / "s.json", [{"host": "a"}])
    found = faults(
        "--router-port", "x", "--sync", "--static-services", static, PROXY_TIMEOUT_SECONDS="-1"
    )
    assert found == [
        "flags: --sync: missing: unknown, see --help for the flags",
        "environment: PROXY_TIMEOUT_SECONDS: -1: out of range, give seconds from 0.01 to 86400",
        'flags: --router-port: "x": not a whole number, give one from 0 to 65535',
        f"{static}: [0].port: missing: every service needs host and port",
    ]


def test_unknown_words_and_missing_values_are_told_together() -> None:
    assert faults("--config", "--sync", "5", "-z", "--host", "--router-port") == [
        "flags: --sync: missing: unknown, see --help for the flags",
        "flags: 5: missing: unknown, see --help for the flags",
        "flags: -z: missing: unknown, see --help for the flags",
        "flags: --config: missing: give a value, see --help",
        "flags: --host: missing: give a value, see --help",
        "flags: --router-port: missing: give a value, see --help",
    ]


def test_one_setting_under_two_keys_is_a_fault(tmp_path: Path) -> None:
    file = write(tmp_path / "c.json", {"router": {"port": 1, "router_port": 2}})
    assert faults("--config", file) == [
        f"{file}: router.router_port: 2: the same setting as port, keep one of them"
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{,}", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"router": {"port": 1, "port": 2}}', "stands twice"),
        ('{"router": {"health_interval": NaN}}', "no JSON number"),
        ("[]", "not an object"),
        ('{"router": []}', "not an object"),
        ('{"static_services": []}', "not an object"),
        ('{"static_services": {}}', "not a list"),
    ],
)
def test_files_of_another_shape_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    file = write(tmp_path / "c.json", content)
    [fault] = faults("--config", file)
    assert fault.startswith(file)
    assert reason in fault


def test_a_missing_file_is_a_fault_of_its_own(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.json")
    found = faults("--config", gone, "--static-services", gone)
    assert len(found) == 2
    assert all("can't be read" in fault for fault in found)


@pytest.mark.parametrize("shape", ["list", "services", "static_services", "whole router config"])
def test_static_services_come_in_three_shapes(tmp_path: Path, shape: str) -> None:
    entries = [{"host": "127.0.0.1", "port": 8100, "metadata": {"models": ["m", "n"]}}]
    content: Any = {
        "list": entries,
        "services": {"services": entries},
        "static_services": {"static_services": {"services": entries}},
        "whole router config": {
            "router": {"anything": 1},
            "static_services": {"services": entries},
        },
    }[shape]
    [service] = load("--static-services", write(tmp_path / "s.json", content)).static_services
    assert (service.name, service.address, service.models) == (
        "127.0.0.1:8100",
        ("127.0.0.1", 8100),
        ("m", "n"),
    )


def test_the_services_of_the_flag_replace_those_of_the_file(tmp_path: Path, shipped: str) -> None:
    file = write(tmp_path / "s.json", [{"host": "h", "port": 1}])
    [service] = load("--config", shipped, "--static-services", file).static_services
    assert service.host == "h"


@pytest.mark.parametrize(
    ("metadata", "models", "objects"),
    [
        ({"model": "one"}, ("one",), 0),
        ({"models": ["a", "a", 7, ""], "model": "one"}, ("a",), 0),
        ({"models_list": [{"id": "x", "n": 1}, {"id": 3}, "y"]}, ("x",), 1),
        ({"models": ["a"], "models_list": [{"id": "a"}, {"id": "b"}]}, ("a",), 2),
        ({}, (), 0),
    ],
)
def test_models_of_a_static_service_come_from_its_metadata(
    tmp_path: Path, metadata: Any, models: tuple[str, ...], objects: int
) -> None:
    file = write(tmp_path / "s.json", [{"host": "h", "port": 1, "metadata": metadata}])
    [service] = load("--static-services", file).static_services
    assert service.models == models
    assert len(service.models_list) == objects


def test_nginx_words_of_a_static_service_are_read(tmp_path: Path) -> None:
    entry = {"host": "h", "port": 1, "max_fails": 0, "fail_timeout": "1m", "backup": True}
    [service] = load("--static-services", write(tmp_path / "s.json", [entry])).static_services
    assert (service.max_fails, service.fail_timeout, service.backup) == (0, 60.0, True)


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("500ms", 0.5), ("2", 2), (7, 7)])
def test_times_may_be_written_as_nginx_does(text: object, seconds: float) -> None:
    assert nginx_seconds(text) == seconds


@pytest.mark.parametrize("text", ["0", "s", "-1s", True, None, "1 day"])
def test_other_times_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match="give seconds"):
        nginx_seconds(text)


def test_a_static_service_of_another_type_keeps_it(tmp_path: Path) -> None:
    entry = {"host": "h", "port": 1, "metadata": {"type": "InfiniLM"}}
    [service] = load("--static-services", write(tmp_path / "s.json", [entry])).static_services
    assert not service.is_engine


def test_names_that_stand_twice_or_break_headers_are_faults(tmp_path: Path) -> None:
    entries = [
        {"host": "h", "port": 1, "name": "x"},
        {"host": "h", "port": 2, "name": "x"},
        {"host": "h", "port": 3, "name": "a\r\nb"},
    ]
    found = faults("--static-services", write(tmp_path / "s.json", entries))
    assert len(found) == 2
    assert '[1].name: "x": used twice' in found[0]
    assert "[2].name" in found[1]


def test_lists_are_separated_by_commas_in_text_and_may_be_lists_in_files(tmp_path: Path) -> None:
    config = load(
        "--registry-url", "http://a:1/, http://b:2", "--trusted-proxies", "10.0.0.0/8,127.0.0.1",
        "--proxy-paths", "/v2/,/x", "--retry-on", "reset-before-headers",
    )  # fmt: skip
    assert config.registry_urls == ("http://a:1", "http://b:2")
    assert [str(n) for n in config.trusted_proxies] == ["10.0.0.0/8", "127.0.0.1/32"]
    assert (config.proxy_paths, config.retry_on) == (("/v2/", "/x"), ("reset-before-headers",))
    file = write(tmp_path / "c.json", {"router": {"registry_urls": ["http://a:1", "http://b:2"]}})
    assert load("--config", file).registry_urls == config.registry_urls


@pytest.mark.parametrize(
    "url", ["a:1", "http://", "http://h:0", "http://h:99999", "http://u:p@h", "http://h/?q", "x y"]
)
def test_what_is_no_registry_url_is_refused(url: str) -> None:
    [fault] = faults("--registry-url", url)
    assert "http://10.0.0.1:18000" in fault


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e9", "five", ""])
def test_times_out_of_range_are_refused(text: str) -> None:
    [fault] = faults("--health-interval", text)
    assert fault.startswith("flags: --health-interval: ")


def test_fractions_of_a_second_are_accepted() -> None:
    assert load("--health-interval", "0.05").health_interval == 0.05


def test_the_policies_are_those_of_selection() -> None:
    assert set(POLICIES) == set(selection.POLICIES)
    for policy in selection.POLICIES:
        assert load("--policy", policy).policy == policy


def test_the_key_of_engines_is_read_and_never_shown(tmp_path: Path) -> None:
    file = write(tmp_path / "key", "sk-canary\n")
    config = load("--engine-api-key-file", file)
    assert config.engine_api_key == "sk-canary"
    assert "canary" not in config.to_json() + repr(config)


@pytest.mark.parametrize("content", ["", "two words", "\u00e9"])
def test_a_key_file_without_a_usable_key_is_a_fault_that_does_not_show_it(
    tmp_path: Path, content: str
) -> None:
    file = write(tmp_path / "key", content)
    reason = "holds no usable key, put one line of printable ASCII without blanks into it"
    assert faults("--engine-api-key-file", file) == [
        f'flags: --engine-api-key-file: "{file}": {reason}'
    ]


def test_the_state_folder_defaults_to_logs_but_not_for_a_port_that_changes() -> None:
    default = load().state_dir
    assert default is None or default.name == "logs"
    assert load("--router-port", "0").state_dir is None
    assert load("--state-dir", "none").state_dir is None
    assert load("--state-dir", "").state_dir is None


def test_a_state_folder_that_is_a_file_is_a_fault(tmp_path: Path) -> None:
    [fault] = faults("--state-dir", write(tmp_path / "f", ""))
    assert fault.startswith("flags: --state-dir:")


def test_the_shown_configuration_read_again_is_the_same(tmp_path: Path, shipped: str) -> None:
    config = load("--config", shipped, "--trusted-proxies", "10.0.0.0/8", "--state-dir", "/s")
    shown = json.loads(config.to_json())
    assert list(shown) == sorted(shown)
    services = [
        {key: value for key, value in service.items() if value is not None}
        for service in shown.pop("static_services")
    ]
    content = {"router": shown, "static_services": {"services": services}}
    assert load("--config", write(tmp_path / "again.json", content)) == config


def test_seconds_are_shown_as_fractions_and_counts_as_whole_numbers() -> None:
    shown = load("--health-interval", "5").to_json()
    assert '"health_interval": 5.0' in shown
    assert '"health_fall": 3' in shown


def test_every_setting_has_a_flag_a_file_key_and_help(tmp_path: Path) -> None:
    for name, setting in SETTINGS.items():
        assert setting.about
        default = json.loads(RouterConfig().to_json())[name]
        file = write(tmp_path / "c.json", {"router": {name: default}})
        assert getattr(load("--config", file), name) == getattr(RouterConfig(), name)


def test_the_readme_names_every_flag() -> None:
    readme = (REPOSITORY / "router-python" / "README.md").read_text()
    for name, setting in ALL_SETTINGS.items():
        flag = setting.flag or "--" + name.replace("_", "-")
        assert f"`{flag}`" in readme, flag
