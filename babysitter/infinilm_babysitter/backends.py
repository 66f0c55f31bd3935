"""Backend types: each reads its `[backend]` keys and returns how to build the command line."""

import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from infinilm_babysitter.checks import Section
from infinilm_babysitter.infinilm import infinilm
from infinilm_babysitter.launch import Builder, Launch, Place, is_file

PACKAGE_PARENT = str(Path(__file__).resolve().parents[1])


def command(section: Section) -> Builder:
    """Any command. `{host}` and `{port}` in it stand for where the engine is to listen."""
    words = _words(section, "command", section.required("command", "the program to run"))
    args = section.texts("args")
    cwd, env = _surroundings(section)

    def build(place: Place) -> Launch:
        argv = tuple(_filled(word, place) for word in (*words, *args))
        return Launch(argv, {name: _filled(env[name], place) for name in env}, cwd)

    return build


def vllm(section: Section) -> Builder:
    """The OpenAI server of vLLM."""
    module = ("-m", "vllm.entrypoints.openai.api_server", "--model")
    return _server(section, module, health_path="/health")


def sglang(section: Section) -> Builder:
    """The server of SGLang."""
    return _server(section, ("-m", "sglang.launch_server", "--model-path"))


def llama_cpp(section: Section) -> Builder:
    """llama.cpp's `llama-server` with a GGUF file."""
    return _model_server(section, ("llama-server",), ("-m",))


def infinilm_rust(section: Section) -> Builder:
    """InfiniLM-Rust: `xtask`, or `cargo xtask` in its repository where there is no `xtask`."""
    config_file = section.required("config_file", "the TOML file for xtask service")
    program = _words(section, "command", section.text("command"))
    cwd, env = _surroundings(section)

    def build(place: Place) -> Launch:
        start = program or (("xtask",) if shutil.which("xtask") else ("cargo", "xtask"))
        argv = (*start, "service", config_file, "-p", str(place.port))
        return Launch(argv, env, cwd, models=_tables_of(Path(cwd or ".") / config_file))

    return build


def mock(section: Section) -> Builder:
    """The engine that comes with the babysitter: deterministic text, no model needed."""
    models = section.texts("models")
    if not models:
        section.fault("models", 'needs at least one name, e.g. ["mock-model"]')
    options: list[str] = []
    for key in ("tokens_per_second", "prefill_seconds"):
        if section.has(key):
            options += [f"--{key.replace('_', '-')}", f"{section.number(key, 0.0):g}"]
    cwd, env = _surroundings(section)

    def build(place: Place) -> Launch:
        where = ("--host", place.host, "--port", str(place.port), "--models", ",".join(models))
        argv = (sys.executable, "-m", "infinilm_babysitter.mock_engine", *where, *options)
        return Launch(argv, {"PYTHONPATH": PACKAGE_PARENT, **env}, cwd, models=models)

    return build


BACKENDS: Mapping[str, Callable[[Section], Builder]] = {
    "command": command,
    "vllm": vllm,
    "sglang": sglang,
    "llama-cpp": llama_cpp,
    "infinilm": infinilm,
    "infinilm-rust": infinilm_rust,
    "mock": mock,
}


def _server(
    section: Section, module: tuple[str, ...], *, health_path: str | None = None
) -> Builder:
    """A Python module; `python` says by which interpreter."""
    python = (section.text("python", "python3"),)
    return _model_server(section, python, module, health_path=health_path)


def _model_server(
    section: Section,
    program: tuple[str, ...],
    options: tuple[str, ...],
    *,
    health_path: str | None = None,
) -> Builder:
    """`PROGRAM OPTIONS MODEL --host H --port P ARGS`; `command` replaces the program."""
    model = section.required("model", "the model's directory, file or name")
    program = _words(section, "command", section.text("command")) or program
    args = section.texts("args")
    cwd, env = _surroundings(section)

    def build(place: Place) -> Launch:
        where = ("--host", place.host, "--port", str(place.port))
        argv = (*program, *options, model, *where, *args)
        return Launch(argv, env, cwd, health_path=health_path)

    return build


def _surroundings(section: Section) -> tuple[str | None, dict[str, str]]:
    return section.text("work_dir") or None, section.variables("env")


def _words(section: Section, key: str, text: str) -> tuple[str, ...]:
    """A command as words: blanks part them, unless the whole text is the path of a program.

    Never used on `args`.
    """
    if is_file(text):
        return (text,)
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        section.fault(key, f"cannot be split into words: {error}")
        return ()


def _filled(text: str, place: Place) -> str:
    return text.replace("{host}", place.host).replace("{port}", str(place.port))


def _tables_of(file: Path) -> tuple[str, ...]:
    """The configuration of xtask has one table per model, named like it."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()  # xtask will say what is wrong with it
    return tuple(name for name, value in content.items() if isinstance(value, dict))
