"""The backend type `infinilm`: InfiniLM's Python server in its three generations.

They share no flags beyond --host and --port:

launch_server             `launch_server.py`, deployment variant
inference_server          `inference_server.py` until April 2026: `--model_path`, device as a switch
inference_server_current  the same file since: `--model`, `--device`
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from infinilm_babysitter.checks import Section
from infinilm_babysitter.launch import Builder, Launch, Place, is_file

LAUNCH_SERVER = "launch_server"
INFERENCE_SERVER = "inference_server"
INFERENCE_SERVER_CURRENT = "inference_server_current"
GENERATIONS = (LAUNCH_SERVER, INFERENCE_SERVER, INFERENCE_SERVER_CURRENT)
SCRIPTS = (
    "python/infinilm/server/inference_server.py",
    "scripts/launch_server.py",
    "launch_server.py",
)
"""Where a checkout of InfiniLM keeps its server, newest first."""


@dataclass(frozen=True, slots=True)
class InfiniLM:
    """The checked keys of the backend; None: not given, the server's own default holds."""

    model_path: str
    python: str
    script: str
    generation: str
    dev: str
    ndev: int | None
    max_batch: int | None
    max_tokens: int | None
    awq: bool
    request_timeout: int | None
    max_concurrency: int | None
    model_name: str
    args: tuple[str, ...]
    work_dir: str | None
    env: Mapping[str, str]


def infinilm(section: Section) -> Builder:
    """Read the keys; script and generation are looked up when the engine is started."""
    settings = InfiniLM(
        model_path=section.required("model_path", "the model's directory"),
        python=section.text("python", "python3"),
        script=section.text("script"),
        generation=section.choice("generation", GENERATIONS),
        dev=section.text("dev"),
        ndev=section.optional_integer("ndev"),
        max_batch=section.optional_integer("max_batch"),
        max_tokens=section.optional_integer("max_tokens"),
        awq=section.flag("awq"),
        request_timeout=section.optional_integer("request_timeout"),
        max_concurrency=section.optional_integer("max_concurrency"),
        model_name=section.text("model_name"),
        args=section.texts("args"),
        work_dir=section.text("work_dir") or None,
        env=section.variables("env"),
    )
    return lambda place: _build(settings, place)


def _build(settings: InfiniLM, place: Place) -> Launch:
    script = settings.script or _find_script(settings.work_dir)
    generation = settings.generation or _detect(Path(settings.work_dir or ".") / script)
    flags, notes = _FLAGS[generation](settings)
    where = ("--host", place.host, "--port", str(place.port))
    return Launch(
        (settings.python, script, *where, *flags, *settings.args),
        settings.env,
        settings.work_dir,
        health_path=None if generation == LAUNCH_SERVER else "/health",
        ends_to_recover=generation == LAUNCH_SERVER,
        notes=tuple(f"{generation} takes no {key}: ignored" for key in notes),
    )


def _find_script(work_dir: str | None) -> str:
    folder = Path(work_dir or ".")
    return next((script for script in SCRIPTS if is_file(folder / script)), SCRIPTS[0])


def _detect(script: Path) -> str:
    """The generation by the script's name, and for inference_server.py by the flags it defines."""
    if script.name.startswith("launch_server"):
        return LAUNCH_SERVER
    try:
        source = script.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return INFERENCE_SERVER_CURRENT
    return INFERENCE_SERVER if "--model_path" in source else INFERENCE_SERVER_CURRENT


def _launch_server(settings: InfiniLM) -> tuple[list[str], list[str]]:
    flags = [
        "--model-path",
        settings.model_path,
        *_given("--dev", settings.dev),
        *_given("--ndev", settings.ndev),
        *_given("--max-batch", settings.max_batch),
        *_given("--max-tokens", settings.max_tokens),
        *(["--awq"] if settings.awq else []),
        *_given("--request-timeout", settings.request_timeout),
        *_given("--max-concurrency", settings.max_concurrency),
        *_given("--model-name", settings.model_name),
    ]
    return flags, []


def _inference_server(settings: InfiniLM) -> tuple[list[str], list[str]]:
    flags = [
        "--model_path",
        settings.model_path,
        *([f"--{settings.dev}"] if settings.dev else []),
        *_given("--tp", settings.ndev),
        *_given("--max_batch_size", settings.max_batch),
        *_given("--max_tokens", settings.max_tokens),
    ]
    return flags, _unknown_to_inference_server(settings)


def _inference_server_current(settings: InfiniLM) -> tuple[list[str], list[str]]:
    flags = [
        "--model",
        settings.model_path,
        *_given("--device", settings.dev),
        *_given("--tp", settings.ndev),
        *_given("--max-batch-size", settings.max_batch),
        *_given("--max-new-tokens", settings.max_tokens),
    ]
    return flags, _unknown_to_inference_server(settings)


_FLAGS: Mapping[str, Callable[[InfiniLM], tuple[list[str], list[str]]]] = {
    LAUNCH_SERVER: _launch_server,
    INFERENCE_SERVER: _inference_server,
    INFERENCE_SERVER_CURRENT: _inference_server_current,
}


def _given(flag: str, value: str | int | None) -> list[str]:
    return [flag, str(value)] if value else []


def _unknown_to_inference_server(settings: InfiniLM) -> list[str]:
    keys = ("awq", "request_timeout", "max_concurrency", "model_name")
    return [key for key in keys if getattr(settings, key)]
