"""The checked configuration: one frozen value that everything else reads."""

import dataclasses
import datetime as dt
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infinilm_babysitter import access, registry_client
from infinilm_babysitter.backends import BACKENDS
from infinilm_babysitter.checks import ENVIRONMENT, ConfigError, Fault, Section
from infinilm_babysitter.launch import Builder, Launch, Place
from infinilm_babysitter.redact import redact_argv, redact_env
from infinilm_babysitter.restarts import RestartRules

DEFAULT_LOG_DIR = Path(__file__).resolve().parents[2] / "logs"
HIGHEST_PORT = 65533
"""The babysitter takes the port above, and registries take ports up to 65534."""
NAME = re.compile(r"[A-Za-z0-9._-]{1,121}")
"""A registry takes 128 characters; `-server` is appended for the engine."""
TOKENS = (registry_client.TOKEN_VARIABLE, access.TOKEN_VARIABLE)
TOKEN = re.compile(r"[!-~]+")
"""What the header `Authorization` can carry."""
SERVICE_TYPES = {"infinilm": "InfiniLM", "infinilm-rust": "InfiniLM-Rust"}
"""metadata.type of the babysitter's own registration; other backends go by their own name."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, all of them."""

    start_timeout: float = 600.0
    """An engine that is not ready by then is ended and started again."""
    probe_interval: float = 1.0
    probe_timeout: float = 10.0
    models_interval: float = 10.0
    """How often a ready engine is asked for its models and its health."""
    unhealthy_after: float = 30.0
    """A ready engine whose port stays closed, or whose core is dead, this long is restarted."""
    stalled_after: float = 120.0
    """An engine that has work and moves no token this long is stalled."""
    stop_timeout: float = 30.0
    """From SIGTERM to SIGKILL."""
    drain_settle: float = 10.0
    """How long routers get to notice that the engine is leaving."""
    drain_timeout: float = 120.0
    """How long running answers get to end."""
    gpu_free_timeout: float = 60.0
    """How long the next engine waits for the memory of the last one."""
    heartbeat_interval: float = 10.0


@dataclass(frozen=True, slots=True)
class LogLimits:
    """The engine's log: one file of `max_bytes` and `files` older ones."""

    max_bytes: int = 50_000_000
    files: int = 10


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the babysitter was told, checked."""

    name: str
    host: str
    """The address that others reach the engine at."""
    port: int
    """The engine's; the babysitter's own is the next one. 0: any free pair."""
    bind: str
    """The address that the babysitter's own HTTP server listens on."""
    engine_host: str
    """The address that the engine is told to listen on."""
    registry_urls: tuple[str, ...]
    router_urls: tuple[str, ...]
    log_dir: Path
    models: tuple[str, ...]
    api_key_file: Path | None
    weight: int | None
    metadata: Mapping[str, object]
    backend: str
    builder: Builder = field(repr=False)
    check_listener: bool
    restart_when_stalled: bool
    timing: Timing
    restarts: RestartRules
    log: LogLimits

    @property
    def service_type(self) -> str:
        """What the babysitter registers itself as."""
        return SERVICE_TYPES.get(self.backend, self.backend)

    @property
    def launch(self) -> Launch:
        """The command line as of now."""
        return self.builder(Place(self.engine_host, self.port))

    def at_port(self, port: int) -> "Config":
        """The same, with a free port in place of 0; a name made from the port follows."""
        name = default_name(self.backend, port) if self.has_default_name else self.name
        return dataclasses.replace(self, port=port, name=name)

    @property
    def has_default_name(self) -> bool:
        """Whether nobody chose the name."""
        return self.name == default_name(self.backend, self.port)

    def as_json(self) -> dict[str, object]:
        """For --check-config: secrets hidden, the command line built."""
        shown = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        del shown["builder"]
        launch = self.launch
        shown["launch"] = {
            "argv": redact_argv(launch.argv, launch.env),
            "env": redact_env(launch.env),
            "cwd": launch.cwd,
            "notes": list(launch.notes),
        }
        shown |= {key: dataclasses.asdict(shown[key]) for key in ("timing", "restarts", "log")}
        shown["log_dir"] = str(self.log_dir)
        shown["api_key_file"] = str(self.api_key_file) if self.api_key_file else None
        return shown


def default_name(backend: str, port: int) -> str:
    """The name of a service that nobody named."""
    return f"infinilm-{backend}-{port}"


def check_config(
    raw: Mapping[str, object], *, file: str, flags: Mapping[str, str] | None = None
) -> Config:
    """Turn settings as read from TOML (and flags laid over them) into a Config.

    Args:
        raw: nested tables, shaped like the TOML file. Tokens come from the environment.
        file: where they come from, for faults.
        flags: full key to flag, for those that came from the command line.

    Raises:
        ConfigError: with every fault there is.
    """
    faults: list[Fault] = []
    root = Section(raw, faults, file=file, flags=flags)
    backend, builder = _backend(root)
    babysitter = root.section("babysitter")
    port = _port(root)
    host = root.text("host", "localhost")
    default_log = LogLimits()
    config = Config(
        name=_name(root, default_name(backend, port)),
        host=host,
        port=port,
        bind=root.text("bind", "0.0.0.0"),  # noqa: S104  # as before: others probe /health
        engine_host=root.text("engine_host", host),
        registry_urls=_urls(root, "registry_url"),
        router_urls=_urls(root, "router_url"),
        log_dir=Path(root.text("log_dir", str(DEFAULT_LOG_DIR))),
        models=root.texts("models"),
        api_key_file=_api_key_file(root),
        weight=root.optional_integer("weight"),
        metadata=_metadata(root),
        backend=backend,
        builder=builder,
        check_listener=babysitter.flag("check_listener", default=True),
        restart_when_stalled=babysitter.flag("restart_when_stalled"),
        timing=_timing(babysitter),
        restarts=_restarts(babysitter),
        log=LogLimits(
            babysitter.integer("log_max_bytes", default_log.max_bytes, low=1024),
            babysitter.integer("log_files", default_log.files, high=1000),
        ),
    )
    babysitter.finish()
    root.finish()
    faults += _token_faults()
    if faults:
        raise ConfigError(faults)
    return config


def _token_faults() -> list[Fault]:
    """Without the values: they are secrets, as good as what they were meant to be."""
    given = [name for name in TOKENS if os.environ.get(name)]
    bad = [name for name in given if not TOKEN.fullmatch(os.environ[name])]
    reason = "must be printable ASCII without blanks and line ends"
    return [Fault(ENVIRONMENT, name, None, reason) for name in bad]


def _backend(root: Section) -> tuple[str, Builder]:
    section = root.section("backend")
    section.required("type", f"one of {', '.join(BACKENDS)}")
    kind = section.choice("type", tuple(BACKENDS))
    if kind not in BACKENDS:  # its other keys cannot be judged
        return kind, lambda _: Launch(())
    builder = BACKENDS[kind](section)
    section.finish()
    return kind, builder


def _port(root: Section) -> int:
    if not root.has("port"):
        root.fault("port", "is missing: the engine's port, 0 for any free one")
        return 0
    return root.integer("port", 0, high=HIGHEST_PORT)


def _name(root: Section, default: str) -> str:
    name = root.text("name", default)
    if not NAME.fullmatch(name):
        root.fault("name", "must be at most 121 letters, digits, dots, underscores and hyphens")
    return name


def _urls(root: Section, key: str) -> tuple[str, ...]:
    urls = [url.strip().rstrip("/") for url in root.text(key).split(",") if url.strip()]
    for url in urls:
        if reason := _url_fault(url):
            root.fault(key, f"{reason}: {url}")
    return tuple(urls)


def _url_fault(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return "must look like http://host:port"
    if parts.query or parts.fragment or parts.username is not None:
        return "must have no user, query or fragment"
    return ""


def _api_key_file(root: Section) -> Path | None:
    text = root.text("api_key_file")
    if not text:
        return None
    try:
        key = Path(text).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        key = ""
    if not key.isprintable() or not key:
        root.fault("api_key_file", "is no readable file with one line of text")
    return Path(text)


def _metadata(root: Section) -> dict[str, object]:
    """`[metadata]` with dates as text, since it travels as JSON; `max_concurrency` joins it."""
    metadata = {key: _as_json(value) for key, value in root.mapping("metadata").items()}
    limit = root.optional_integer("max_concurrency")
    return metadata if limit is None else {"max_concurrency": limit, **metadata}


def _as_json(value: object) -> object:
    if isinstance(value, dict):
        return {key: _as_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_json(each) for each in value]
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    return value


def _timing(section: Section) -> Timing:
    lowest = {"probe_interval": 0.01, "probe_timeout": 0.01, "models_interval": 0.01}
    lowest |= {"heartbeat_interval": 0.05, "start_timeout": 0.1, "stalled_after": 0.1}
    return Timing(
        **{
            key: section.number(key, default, low=lowest.get(key, 0.0))
            for key, default in dataclasses.asdict(Timing()).items()
        }
    )


def _restarts(section: Section) -> RestartRules:
    default = RestartRules()
    first = section.number("restart_delay", default.first_delay)
    return RestartRules(
        first_delay=first,
        max_delay=max(first, section.number("backoff_max", default.max_delay)),
        stable_after=section.number("stable_after", default.stable_after),
        max_restarts=section.integer("max_restarts", default.max_restarts),
        crash_exits=section.integer("crash_exits", default.crash_exits, low=1),
        crash_window=section.number("crash_window", default.crash_window),
    )
