"""generate_nginx_config.py and render_service_config.py as users run them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toml

from rig.processes import ROOT

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
CONFIGS = ROOT / "deployment_configs"


def run_tool(name: str, *arguments: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, ROOT / name, *arguments],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def nginx_accepts(text: str, tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_text(text)
    settings = f"pid {tmp_path}/nginx.pid; error_log stderr;"
    command = [NGINX, "-t", "-p", f"{tmp_path}/", "-c", "nginx.conf", "-g", settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


def directives(text: str) -> set[str]:
    return {line.split(";")[0].strip() for line in text.splitlines()}


@pytest.mark.parametrize("method", ["round_robin", "least_conn", "ip_hash"])
def test_nginx_accepts_the_shipped_services_with_each_method(method, tmp_path):
    code, text, _ = run_tool(
        "generate_nginx_config.py",
        "--config-file",
        CONFIGS / "server1_services.json",
        "--services",
        "extra:localhost:5001:3,idle:[::1]:5005:0",
        "--load-balancing",
        method,
        "--router-port",
        "8099",
    )
    assert code == 0
    nginx_accepts(text, tmp_path)
    found = directives(text)
    assert "listen 8099" in found
    assert "server 192.168.1.10:5001 weight=1 max_fails=3 fail_timeout=30s" in found
    assert "server localhost:5001 weight=3 max_fails=3 fail_timeout=30s" in found
    assert "server [::1]:5005 down max_fails=3 fail_timeout=30s" in found
    assert (f"{method}" in found) == (method != "round_robin")


def test_nginx_passes_streams_on_unbuffered_over_kept_connections(tmp_path):
    code, text, _ = run_tool(
        "generate_nginx_config.py", "--services", "a:127.0.0.1:1", "--proxy-timeout", "77"
    )
    assert code == 0
    assert {
        "proxy_buffering off",
        "proxy_http_version 1.1",
        'proxy_set_header Connection ""',
        "proxy_read_timeout 77s",
        "keepalive 64",
    } <= directives(text)


def test_backup_max_fails_and_fail_timeout_of_a_router_config_reach_nginx(tmp_path):
    services = [
        {"name": "main", "host": "127.0.0.1", "port": 1, "max_fails": 5, "fail_timeout": 10},
        {"host": "127.0.0.1", "port": 2, "backup": True, "metadata": {"model": "m"}},
    ]
    config = tmp_path / "router.json"
    config.write_text(json.dumps({"router": {}, "static_services": {"services": services}}))
    output = tmp_path / "out.conf"
    code, said, _ = run_tool("generate_nginx_config.py", "--config-file", config, "-o", output)
    assert (code, said) == (0, f"written: {output}\n")
    nginx_accepts(output.read_text(), tmp_path)
    assert "server 127.0.0.1:1 weight=1 max_fails=5 fail_timeout=10s" in directives(
        output.read_text()
    )
    assert "server 127.0.0.1:2 weight=1 max_fails=3 fail_timeout=30s backup" in directives(
        output.read_text()
    )


def test_nginx_generator_reports_all_faults_at_once_with_exit_code_64(tmp_path):
    config = tmp_path / "services.json"
    entries = [
        {"name": "bad name;", "host": "a b", "port": 0, "weight": -1, "colour": 1},
        {"host": "h", "max_fails": "x", "fail_timeout": "soon", "backup": "yes"},
        "text",
    ]
    config.write_text(json.dumps(entries))
    code, said, faults = run_tool(
        "generate_nginx_config.py",
        *("--config-file", config, "--services", "a:b:c:d:e"),
        *("--router-port", "0", "--upstream-name", "a b"),
    )
    assert (code, said) == (64, "")
    lines = faults.splitlines()
    assert len(lines) == 13, faults
    for key in ("name", "host", "port", "weight"):
        assert any(f"{config}: services[0]: {key} is " in line for line in lines), key
    assert "unknown key 'colour'" in faults
    assert "services[1]: port is missing" in faults
    assert "--services: a:b:c:d:e: must be name:host:port" in faults


def test_nginx_accepts_hundreds_of_engines_of_either_kind_of_address(tmp_path):
    named = [f"engine-{n}:10.0.{n // 200}.{n % 200 + 1}:8100:3" for n in range(400)]
    given = ",".join([*named, "six:[::1]:8100"])
    code, text, faults = run_tool("generate_nginx_config.py", "--services", given)
    assert code == 0, faults
    nginx_accepts(text, tmp_path)
    assert "server [::1]:8100 weight=1 " in text
    answered = "".join(re.findall(r"set \$services_[0-9]+ '([^']*)';", text))
    assert [each["name"] for each in json.loads(answered)["services"]] == [
        *(f"engine-{n}" for n in range(400)),
        "six",
    ]


@pytest.mark.parametrize(
    ("entries", "flags", "reason"),
    [
        ([{"host": "h", "port": 1, "backup": True}], [], "all are backup"),
        (
            [{"host": "h", "port": 1}, {"host": "h", "port": 2, "backup": True}],
            ["--load-balancing", "ip_hash"],
            "no backup servers",
        ),
        ([], [], "no services"),
        ([], ["--services", "a:::1:8000"], "IPv6 hosts in brackets"),
        ([], ["--services", "a:10.0.0.1::8000"], "must be name:host:port"),
        ([{"host": "h", "port": 1, "fail_timeout": "500ms"}], [], "a time as nginx writes it"),
        ([{"host": "h", "port": 1, "fail_timeout": "1s2m"}], [], "a time as nginx writes it"),
        ([{"host": "h", "port": 1, "fail_timeout": "٣s"}], [], "a time as nginx writes it"),
    ],
)
def test_what_nginx_would_refuse_is_refused_with_a_reason(tmp_path, entries, flags, reason):
    config = tmp_path / "services.json"
    config.write_text(json.dumps({"services": entries}))
    code, _, faults = run_tool("generate_nginx_config.py", "--config-file", config, *flags)
    assert code == 64
    assert reason in faults


@pytest.mark.parametrize("tool", ["generate_nginx_config.py", "render_service_config.py"])
def test_unknown_flags_and_unreadable_files_end_with_64(tool, tmp_path):
    flag = "--config-file" if tool.startswith("generate") else "--config"
    broken = tmp_path / "broken.json"
    broken.write_text('{"services":\n [')
    assert run_tool(tool, "--no-such-flag")[0] == 64
    code, _, faults = run_tool(tool, flag, broken)
    assert (code, faults.count("\n")) == (64, 1)
    assert f"{broken}:2: not JSON" in faults
    code, _, faults = run_tool(tool, flag, tmp_path / "missing.json")
    assert code == 64
    assert "cannot be read" in faults


def test_an_output_that_cannot_be_written_ends_with_74(tmp_path):
    code, _, fault = run_tool(
        "render_service_config.py", "--test", "--output", tmp_path / "no" / "x"
    )
    assert code == 74
    assert "cannot be written" in fault


def expected_tables(models: list[dict[str, object]]) -> dict[str, object]:
    return {
        model["name"]: {key.replace("_", "-"): model[key] for key in model if key != "name"}
        for model in models
    }


def render(models: list[dict[str, object]], tmp_path: Path) -> tuple[int, str, str]:
    config = tmp_path / "models.json"
    config.write_text(json.dumps({"models": models}))
    return run_tool("render_service_config.py", "--config", config)


MODEL = {
    "name": "tiny",
    "path": "/m/tiny.gguf",
    "gpus": [0],
    "max_tokens": 10,
    "temperature": 0.0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}


def test_rendered_service_files_parse_back_equal(tmp_path):
    models = [
        MODEL,
        {**MODEL, "name": "org/Qwen2.5-7B@main", "path": '/m/a "b" \\c é 模型', "gpus": [3, 1, 2]},
        {**MODEL, "name": "full", "top_k": 20, "think": True, "max_sessions": 2},
        {
            **MODEL,
            "name": "gpu",
            "gpu_memory_utilization": 0.9,
            "temperature": 1e-05,
            "think": False,
        },
    ]
    code, text, faults = render(models, tmp_path)
    assert (code, faults) == (0, "")
    assert toml.loads(text) == expected_tables(models)


def test_the_test_configuration_renders():
    code, text, _ = run_tool("render_service_config.py", "--test")
    assert code == 0
    assert toml.loads(text)["test-model"]["max-tokens"] == 1024


def test_service_qwen_toml_is_the_rendered_test_services_json():
    code, text, _ = run_tool("render_service_config.py", "--config", "test_services.json")
    assert code == 0
    assert text == (ROOT / "service_qwen.toml").read_text()


def test_a_template_of_ones_own_adds_lines(tmp_path):
    (tmp_path / "own.template").write_text('[$name]\npath = $path\nlabel = "costs 5 $$"\n')
    code, text, _ = run_tool(
        "render_service_config.py",
        *("--test", "--template", "own.template"),
        *("--templates-dir", tmp_path),
    )
    assert code == 0
    table = toml.loads(text)["test-model"]
    assert table == {"path": "/tmp/test-model.gguf", "label": "costs 5 $"}


def test_the_renderer_reports_all_faults_of_both_files_at_once(tmp_path):
    models = [
        {**MODEL, "gpus": [], "max_tokens": True, "top_p": 2, "colour": 1},
        {**MODEL, "think": "no"},
        {"name": "line\nbreak"},
    ]
    (tmp_path / "models.json").write_text(json.dumps({"models": models, "more": 1}))
    (tmp_path / "own.template").write_text("a = $size\nb = $\n")
    code, said, faults = run_tool(
        "render_service_config.py",
        *("--config", tmp_path / "models.json", "--template", tmp_path / "own.template"),
    )
    assert (code, said) == (64, "")
    lines = faults.splitlines()
    assert len(lines) == 4 + 1 + 7 + 1 + 1 + 3, faults
    assert re.search(r"models\[0\]: gpus is \[\]; it must be a non-empty list", faults)
    assert "'tiny' is there 2 times" in faults
    assert f"{tmp_path}/own.template:1: unknown value $size" in faults


def test_the_shipped_json_files_have_the_documented_keys():
    registry = json.loads((CONFIGS / "registry_config.json").read_text())
    assert set(registry) == {"registry"}
    assert set(registry["registry"]) == {
        "port",
        "health_interval",
        "health_timeout",
        "cleanup_interval",
    }
    router = json.loads((CONFIGS / "router_config.json").read_text())
    assert set(router["router"]) == {
        "implementation",
        "port",
        "registry_url",
        "load_balancing_method",
        "proxy_timeout",
        "proxy_connect_timeout",
    }
    assert router["static_services"] == {"services": []}
