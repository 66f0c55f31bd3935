"""R40: secrets are never shown."""

from infinilm_babysitter.checks import Fault, Section
from infinilm_babysitter.redact import redact_argv, redact_env
from rig.processes import wait_until


def test_r40_neither_log_nor_answers_show_secrets(babysit, registry, fake_engine, tmp_path) -> None:
    import sys

    backend = {
        "type": "command",
        "command": sys.executable,
        "args": [
            *(str(fake_engine), "--port", "{port}", "--folder", str(tmp_path / "engine")),
            *("--secret-token", "canary-flag", "--note=has-canary-env-inside"),
        ],
        "env": {"HF_TOKEN": "canary-env"},
    }
    babysat = babysit(
        backend=backend,
        registry_url=registry.url,
        env={"INFINILM_REGISTRY_TOKEN": "canary-registry"},
    )
    wait_until(lambda: registry.status(babysat.engine_name) == "running")
    shown = [babysat.get(path) for path in ("/health", "/info", "/models")]
    assert "canary" not in str(shown) + str(registry.calls)
    (start,) = babysat.journal("start")
    assert "canary-flag" in start["argv"], "the engine itself gets what it was given"
    assert start["token"] is None, "but not what is none of its business"
    babysat.program.stop()
    assert "canary" not in babysat.program.output


def test_words_are_compared_whole_in_flags() -> None:
    argv = ["x", "--max-tokens", "5", "--tokenizer", "t", "--api-key", "s", "--hf_token=s", "KEY=s"]
    assert redact_argv(argv, {}) == [
        *("x", "--max-tokens", "5", "--tokenizer", "t", "--api-key", "***", "--hf_token=***"),
        "KEY=***",
    ]


def test_a_secret_flag_without_value_hides_nothing_else() -> None:
    assert redact_argv(["--token", "--verbose", "x"], {}) == ["--token", "--verbose", "x"]


def test_variables_are_hidden_by_name() -> None:
    env = {"MY_APIKEY": "s", "PASSWORD": "s", "PATH": "/bin"}
    assert redact_env(env) == {"MY_APIKEY": "***", "PASSWORD": "***", "PATH": "/bin"}


def test_a_secret_under_a_wrong_key_is_not_repeated_in_the_fault() -> None:
    faults: list[Fault] = []
    Section({"api_key": "canary", "api_key_fil": "canary", "typo": 5}, faults).finish()
    assert "canary" not in "".join(str(fault) for fault in faults)
    assert "typo = 5" in str(faults[-1])
