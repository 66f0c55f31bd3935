"""The command line, and how its flags are laid over a configuration file."""

import argparse
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from infinilm_babysitter.backends import BACKENDS
from infinilm_babysitter.checks import COMMAND_LINE, ConfigError, Fault

TOP_LEVEL = ("host", "port", "name", "bind", "log_dir", "registry_url", "router_url")
BABYSITTER = (
    *("max_restarts", "restart_delay", "heartbeat_interval"),
    *("stalled_after", "restart_when_stalled", "gpu_free_timeout"),
)
PATH_KEYS = {
    "infinilm": "model_path",
    "infinilm-rust": "config_file",
    "vllm": "model",
    "sglang": "model",
    "llama-cpp": "model",
}
"""What --path means to each backend type."""
ENGINE_KEYS = {
    "dev": "dev",
    "ndev": "ndev",
    "max_batch": "max_batch",
    "max_tokens": "max_tokens",
    "awq": "awq",
    "request_timeout": "request_timeout",
    "max_concurrency": "max_concurrency",
    "launch_script": "script",
    "model_name": "model_name",
}
"""Flags of InfiniLM's server and their keys."""
WHOLE_NUMBERS = frozenset(
    {"port", "max_restarts", "ndev", "max_batch", "max_tokens", "request_timeout"}
    | {"max_concurrency"}
)
NUMBERS = frozenset({"restart_delay", "heartbeat_interval", "stalled_after", "gpu_free_timeout"})
LEGACY_DEFAULTS = {"host": "localhost", "port": "5000", "max_restarts": "10", "restart_delay": "5"}
"""As they have always been when no configuration file is given."""
LEGACY_ENGINE_DEFAULTS = {"dev": "nvidia", "ndev": "1", "max_batch": "3", "request_timeout": "300"}


@dataclass(frozen=True, slots=True)
class Settings:
    """Raw settings, shaped like a configuration file, and where they came from."""

    raw: Mapping[str, object]
    file: str
    flags: Mapping[str, str]
    """Full key to the flag that set it."""
    notes: tuple[str, ...]
    """Flags that were given and do nothing."""
    check_only: bool
    log_level: str


def read_settings(argv: Sequence[str] | None) -> Settings:
    """Parse flags, read the file they name, lay the flags over it.

    Raises:
        ConfigError: for flags or files that cannot be understood at all.
    """
    given, unknown = _parser().parse_known_args(argv)
    overlay = _Overlay(_read_file(given.config_file) if given.config_file else {})
    for flag in unknown:
        overlay.refuse(flag, None, "is not a known flag; see --help")
    values = {key: value for key, value in vars(given).items() if value is not None}
    overlay.lay(values if given.config_file else _with_legacy_defaults(values))
    if overlay.faults:
        raise ConfigError(overlay.faults)
    return Settings(
        raw=overlay.raw,
        file=given.config_file or COMMAND_LINE,
        flags=overlay.flags,
        notes=tuple(overlay.notes),
        check_only=given.check_config,
        log_level=given.log_level,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError([Fault(COMMAND_LINE, "flags", None, message)])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="enhanced_babysitter.py",
        description="Start an engine, keep it alive, register it.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config-file", metavar="F.toml", help="settings; flags win over them")
    add("--check-config", action="store_true", help="print the checked settings as JSON and exit")
    add("--host", help="address that others reach this engine at (localhost)")
    add("-p", "--port", help="engine's port; the babysitter serves the next one (5000; 0: any)")
    add("--bind", help="address that the babysitter's own server listens on (0.0.0.0)")
    add("-n", "--name", help="service name (infinilm-TYPE-PORT)")
    add("--registry", "--registry-url", dest="registry_url", help="registry, or several: A,B")
    add("--router", "--router-url", dest="router_url", help="routers to wait for when stopping")
    add("--max-restarts", help="restarts in a row, 0: never (10; with a file 10000)")
    add("--restart-delay", help="seconds before the first restart (5; with a file 1)")
    add("--heartbeat-interval", help="seconds (10)")
    add("--stalled-after", help="seconds without a token that make a working engine stalled (120)")
    add(
        "--restart-when-stalled",
        action="store_true",
        default=None,
        help="start a stalled engine again; without it, stalls are only reported",
    )
    add("--gpu-free-timeout", help="seconds that a start waits for the last engine's memory (60)")
    add("--log-dir", help="folder for the engine's log (logs/ of this repository)")
    add("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    _add_engine_flags(parser)
    return parser


def _add_engine_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("engine").add_argument
    add("--service-type", help=f"InfiniLM, InfiniLM-Rust, or one of {', '.join(BACKENDS)}")
    add("--path", help="model directory or file; for InfiniLM-Rust the TOML file")
    add("--model-name", help="name of the served model")
    add("--launch-script", help="InfiniLM's server script (searched in the working directory)")
    add("--dev", help="device (nvidia)")
    add("--ndev", help="number of devices (1)")
    add("--max-batch", help="requests in a batch (3)")
    add("--max-tokens", help="longest sequence")
    add("--awq", action="store_true", default=None, help="the model is AWQ-quantised")
    add("--request-timeout", help="seconds (300)")
    add("--max-concurrency", help="requests at a time; the router keeps to it as well")
    add("--command", help="type command: the program")
    add("--args", help="type command: its arguments, as one text")
    add("--work-dir", help="the engine's working directory")
    add("--env", nargs="+", metavar="NAME=VALUE", help="environment variables for the engine")


def _with_legacy_defaults(given: Mapping[str, object]) -> dict[str, object]:
    values = {**LEGACY_DEFAULTS, **given}
    values.setdefault("service_type", "command" if "command" in given else "InfiniLM")
    if str(values["service_type"]).lower() == "infinilm":
        values = {**LEGACY_ENGINE_DEFAULTS, **values}
    return values


def _read_file(name: str) -> dict[str, object]:
    try:
        return tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError:
        reason = "is not UTF-8 text"
    except tomllib.TOMLDecodeError as error:
        reason = f"is not TOML: {error}"
    raise ConfigError([Fault(name, "file", None, reason)])


@dataclass(slots=True)
class _Overlay:
    """Puts flags into the tables of a configuration file."""

    raw: dict[str, object]
    flags: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lay(self, values: Mapping[str, object]) -> None:
        """Every flag of `values` (by its name with underscores) that is a setting."""
        for key in values.keys() & set(TOP_LEVEL):
            self._put("", key, _typed(key, values[key]), key)
        for key in values.keys() & set(BABYSITTER):
            self._put("babysitter", key, _typed(key, values[key]), key)
        if "service_type" in values:
            self._choose_type(str(values["service_type"]))
        self._lay_engine(values, str(self._table("backend").get("type", "")))

    def refuse(self, flag: str, value: object, reason: str) -> None:
        """Record a fault of the command line."""
        self.faults.append(Fault(COMMAND_LINE, flag, value, reason))

    def _table(self, name: str) -> dict[str, object]:
        table = self.raw.setdefault(name, {})
        return table if isinstance(table, dict) else {}  # the check reports a wrong one

    def _put(self, table: str, key: str, value: object, flag: str) -> None:
        target = self._table(table) if table else self.raw
        target[key] = value
        full = f"{table}.{key}" if table else key
        self.flags[full] = f"--{flag.replace('_', '-')}"

    def _choose_type(self, service_type: str) -> None:
        kind = service_type.lower()
        of_file = self._table("backend").get("type", kind)
        if of_file != kind:
            self.refuse("--service-type", service_type, f"the file's backend is {of_file}")
        self._put("backend", "type", kind, "service_type")

    def _lay_engine(self, values: Mapping[str, object], kind: str) -> None:
        for flag, key in ENGINE_KEYS.items():
            if flag in values:
                self._lay_engine_key(kind, flag, key, _typed(flag, values[flag]))
        if "path" in values:
            self._put_if(kind in PATH_KEYS, PATH_KEYS.get(kind, ""), values["path"], "path", kind)
        if "command" in values:
            fits = kind not in {"infinilm", "mock"}
            self._put_if(fits, "command", values["command"], "command", kind)
        if "args" in values:
            self._put_if(
                kind not in {"infinilm-rust", "mock"},
                "args",
                self._words(str(values["args"])),
                "args",
                kind,
            )
        if "work_dir" in values:
            self._put("backend", "work_dir", values["work_dir"], "work_dir")
        if "env" in values:
            self._lay_env(values["env"])

    def _lay_engine_key(self, kind: str, flag: str, key: str, value: object) -> None:
        if flag == "max_concurrency":
            self._put("", flag, value, flag)
        if kind == "infinilm":
            self._put("backend", key, value, flag)
        elif flag == "model_name":
            self._put("", "models", [value], flag)
            if kind == "mock":
                self._put("backend", "models", [value], flag)
        elif flag != "max_concurrency":
            self._put_if(False, key, value, flag, kind)

    def _put_if(self, fits: bool, key: str, value: object, flag: str, kind: str) -> None:
        # Launch scripts have always passed every flag to every kind of engine.
        if fits:
            self._put("backend", key, value, flag)
        else:
            self.notes.append(f"--{flag.replace('_', '-')} means nothing to backend {kind}")

    def _words(self, text: str) -> list[str]:
        try:
            return shlex.split(text)
        except ValueError as error:
            self.refuse("--args", text, f"cannot be split into words: {error}")
            return []

    def _lay_env(self, pairs: object) -> None:
        variables = dict(self._table("backend").get("env") or {})  # type: ignore[call-overload]
        for pair in pairs if isinstance(pairs, list) else []:
            name, equals, value = pair.partition("=")
            if equals and name:
                variables[name] = value
            else:  # the text may be a secret: not repeated
                self.refuse("--env", None, "takes NAME=VALUE ...")
        self._put("backend", "env", variables, "env")


def _typed(key: str, value: object) -> object:
    """The flag's text as the number it should be; left as text, to be reported, if it is none."""
    if not isinstance(value, str):
        return value
    try:
        if key in WHOLE_NUMBERS:
            return int(value)
        return float(value) if key in NUMBERS else value
    except ValueError:
        return value
