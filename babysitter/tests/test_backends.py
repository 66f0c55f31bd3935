import sys
from pathlib import Path

import pytest

from infinilm_babysitter.backends import BACKENDS
from infinilm_babysitter.checks import Fault, Section
from infinilm_babysitter.launch import Launch, Place

PLACE = Place("10.0.0.5", 8100)


def build(kind: str, **keys: object) -> Launch:
    faults: list[Fault] = []
    section = Section({"type": kind, **keys}, faults)
    section.choice("type", tuple(BACKENDS))
    launch = BACKENDS[kind](section)(PLACE)
    section.finish()
    assert faults == []
    return launch


def test_a_command_is_split_at_blanks_and_its_args_are_not() -> None:
    launch = build("command", command="python3 -m 'my engine'", args=["one two", "--p={port}"])
    assert launch.argv == ("python3", "-m", "my engine", "one two", "--p=8100")


def test_a_program_whose_path_holds_blanks_is_not_split(tmp_path: Path) -> None:
    program = tmp_path / "my engine"
    program.touch()
    assert build("command", command=str(program), args=["x"]).argv == (str(program), "x")


def test_a_command_may_be_longer_than_any_path() -> None:
    flags = [f"--flag-{number}" for number in range(1000)]
    assert build("command", command=" ".join(["engine", *flags])).argv == ("engine", *flags)


def test_a_command_gets_its_environment_and_directory() -> None:
    launch = build("command", command="run", work_dir="/w", env={"URL": "http://{host}:{port}"})
    assert (launch.cwd, launch.env) == ("/w", {"URL": "http://10.0.0.5:8100"})


def test_vllm_is_started_as_its_module() -> None:
    launch = build("vllm", model="/m", args=["--max-model-len", "4096"], env={"A": "1"})
    assert " ".join(launch.argv) == (
        "python3 -m vllm.entrypoints.openai.api_server --model /m --host 10.0.0.5 --port 8100 "
        "--max-model-len 4096"
    )
    assert launch.env == {"A": "1"}
    assert launch.health_path == "/health", "503 there means that its core is dead"


def test_sglang_is_started_as_its_module() -> None:
    launch = build("sglang", model="/m", python="/venv/bin/python")
    assert " ".join(launch.argv) == (
        "/venv/bin/python -m sglang.launch_server --model-path /m --host 10.0.0.5 --port 8100"
    )


def test_llama_cpp_is_started_as_llama_server_or_another_binary() -> None:
    plain = build("llama-cpp", model="/m.gguf", args=["-c", "4096"])
    assert " ".join(plain.argv) == ("llama-server -m /m.gguf --host 10.0.0.5 --port 8100 -c 4096")
    other = build("llama-cpp", model="/m.gguf", command="python3 /opt/server.py")
    assert other.argv[:4] == ("python3", "/opt/server.py", "-m", "/m.gguf")


INFINILM = {
    "model_path": "/models/9g8b",
    "dev": "metax",
    "ndev": 4,
    "max_batch": 5,
    "max_tokens": 4096,
    "args": ["--enable-graph"],
}


def test_infinilm_launch_server_gets_all_its_flags() -> None:
    launch = build(
        "infinilm",
        **INFINILM,
        script="scripts/launch_server.py",
        awq=True,
        request_timeout=30,
        max_concurrency=5,
        model_name="9g8b",
    )
    assert " ".join(launch.argv) == (
        "python3 scripts/launch_server.py --host 10.0.0.5 --port 8100 --model-path /models/9g8b "
        "--dev metax --ndev 4 --max-batch 5 --max-tokens 4096 --awq --request-timeout 30 "
        "--max-concurrency 5 --model-name 9g8b --enable-graph"
    )
    assert launch.ends_to_recover
    assert launch.health_path is None


def test_infinilm_inference_server_of_before_april_gets_underscores() -> None:
    launch = build("infinilm", **INFINILM, generation="inference_server")
    assert " ".join(launch.argv) == (
        "python3 python/infinilm/server/inference_server.py --host 10.0.0.5 --port 8100 "
        "--model_path /models/9g8b --metax --tp 4 --max_batch_size 5 --max_tokens 4096 "
        "--enable-graph"
    )
    assert launch.health_path == "/health"


def test_infinilm_inference_server_of_today_gets_hyphens() -> None:
    launch = build("infinilm", **INFINILM, generation="inference_server_current")
    assert " ".join(launch.argv) == (
        "python3 python/infinilm/server/inference_server.py --host 10.0.0.5 --port 8100 "
        "--model /models/9g8b --device metax --tp 4 --max-batch-size 5 --max-new-tokens 4096 "
        "--enable-graph"
    )
    assert launch.health_path == "/health"


@pytest.mark.parametrize(
    ("script", "source", "flag"),
    [
        ("python/infinilm/server/inference_server.py", 'add("--model_path")', "--model_path"),
        ("python/infinilm/server/inference_server.py", 'add("--model")', "--model"),
        ("scripts/launch_server.py", "", "--model-path"),
        ("launch_server.py", "", "--model-path"),
    ],
)
def test_infinilm_finds_script_and_generation_in_a_checkout(
    tmp_path: Path, script: str, source: str, flag: str
) -> None:
    (tmp_path / script).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / script).write_text(source)
    launch = build("infinilm", model_path="/m", work_dir=str(tmp_path))
    assert launch.argv[1] == script
    assert launch.argv[6:8] == (flag, "/m")


def test_infinilm_in_a_work_dir_that_cannot_be_looked_into_is_left_to_the_start() -> None:
    launch = build("infinilm", model_path="/m", work_dir="/" + "x" * 256)
    assert launch.argv[1] == "python/infinilm/server/inference_server.py"


def test_infinilm_notes_what_its_generation_cannot_take() -> None:
    launch = build("infinilm", model_path="/m", generation="inference_server", awq=True)
    assert launch.notes == ("inference_server takes no awq: ignored",)
    assert "--awq" not in launch.argv


def test_infinilm_rust_uses_xtask_or_cargo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    keys = {"config_file": "c.toml", "work_dir": "/repo"}
    assert build("infinilm-rust", **keys).argv == (
        *("cargo", "xtask", "service", "c.toml", "-p", "8100"),
    )
    (tmp_path / "xtask").touch(0o755)
    launch = build("infinilm-rust", **keys)
    assert launch.argv == ("xtask", "service", "c.toml", "-p", "8100")
    assert launch.cwd == "/repo"


def test_infinilm_rust_takes_its_models_from_the_tables_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('["Qwen3-32B"]\npath = "/m.gguf"\n[small]\npath = "/s.gguf"\n')
    assert build("infinilm-rust", config_file=str(file)).models == ("Qwen3-32B", "small")


def test_the_mock_runs_in_this_interpreter_with_its_package() -> None:
    launch = build("mock", models=["a", "b"], tokens_per_second=50, prefill_seconds=0.5)
    assert launch.argv[0] == sys.executable
    assert " ".join(launch.argv[1:]) == (
        "-m infinilm_babysitter.mock_engine --host 10.0.0.5 --port 8100 --models a,b "
        "--tokens-per-second 50 --prefill-seconds 0.5"
    )
    assert (Path(launch.env["PYTHONPATH"]) / "infinilm_babysitter/mock_engine").is_dir()


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("command", "command"),
        ("vllm", "model"),
        ("sglang", "model"),
        ("llama-cpp", "model"),
        ("infinilm", "model_path"),
        ("infinilm-rust", "config_file"),
        ("mock", "models"),
    ],
)
def test_a_backend_says_which_key_it_lacks(kind: str, missing: str) -> None:
    faults: list[Fault] = []
    BACKENDS[kind](Section({}, faults, prefix="backend."))
    assert {fault.key for fault in faults} == {f"backend.{missing}"}
