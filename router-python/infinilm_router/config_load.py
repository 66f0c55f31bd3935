"""Flags, environment and JSON file -> `RouterConfig`.

Flags win over the environment, the environment over the file. All faults are found at once, each
with where it stands, its key, its value, and what to do.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from infinilm_router.config import PROXY_TIMEOUT, SETTINGS, RouterConfig, Setting
from infinilm_router.registry.static import MISSING, services_of_file, services_of_section
from infinilm_router.utils import checks

REPOSITORY = Path(__file__).resolve().parents[2]
PROXY_TIMEOUTS = ("first_byte_timeout", "response_timeout", "idle_timeout")
ALL_SETTINGS: Mapping[str, Setting] = {"proxy_timeout": PROXY_TIMEOUT, **SETTINGS}
# Every key that may stand under "router" -> the field that it sets.
FILE_KEYS: Mapping[str, str] = {name: name for name in ALL_SETTINGS} | {
    setting.file_key: name for name, setting in SETTINGS.items() if setting.file_key
}
NO_VALUE = object()  # what a flag that stands without its value is given
# For launch_router.sh: which router it starts. Either router takes the same file.
LAUNCHER_KEYS = ("implementation",)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong: where (flags, environment or a file), key, value, reason and remedy."""

    where: str
    key: str
    value: object
    reason: str

    def __str__(self) -> str:
        shown = "missing" if self.value is MISSING else json.dumps(self.value, default=str)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ": ".join(part for part in (self.where, self.key, shown, self.reason) if part)


class ConfigError(Exception):
    """The configuration can't be used; `faults` holds every reason."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Command:
    """What the command line asks for."""

    config: RouterConfig
    check_only: bool


class _Given(NamedTuple):
    """One value as it was given: the field it is for, the key as written, the JSON value."""

    name: str
    key: str
    value: object


def load_config(argv: Sequence[str], environ: Mapping[str, str]) -> Command:
    """Read the configuration.

    Raises:
        ConfigError: something is wrong with it; holds all faults.
        SystemExit: `--help` was asked for.
    """
    loader = _Loader()
    flags = loader.flags(argv)
    if flags.config is not None:
        loader.config_file(Path(flags.config))
    loader.layer("environment", _of_environment(environ))
    loader.layer("flags", _of_flags(flags))
    if flags.static_services is not None:
        loader.static_file(Path(flags.static_services))
    loader.take_over(asked=flags.take_over)
    return Command(loader.finish(), flags.check_config)


class _Loader:
    """Collects values, each layer over the one before, and faults."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}

    def flags(self, argv: Sequence[str]) -> argparse.Namespace:
        """The raw flags; unknown ones, and those without their value, are faults."""
        flags, unknown = _parser().parse_known_args(argv)
        for word in unknown:
            self._fault("flags", word, MISSING, "unknown, see --help for the flags")
        for name, text in vars(flags).items():
            if text is NO_VALUE:
                self._fault("flags", _flag(name), MISSING, "give a value, see --help")
                setattr(flags, name, None)
        return flags

    def layer(self, where: str, given: Iterable[_Given]) -> None:
        """Check all values of one origin; the ones that are fine replace earlier ones."""
        explicit: dict[str, Any] = {}
        for name, key, value in given:
            try:
                checked = ALL_SETTINGS[name].check.read(value)
            except checks.UnusableError as error:
                self._fault(where, key, value, str(error))
                continue
            if name == "proxy_timeout":
                self._values.update(dict.fromkeys(PROXY_TIMEOUTS, checked))
            else:
                explicit[name] = checked
                self._origins[name] = where
        self._values.update(explicit)

    def config_file(self, file: Path) -> None:
        """The file of `--config`."""
        content, where = self._json(file), str(file)
        if content is MISSING:
            return
        if not isinstance(content, dict):
            self._fault(where, "", content, 'not an object, give {"router": {...}}')
            return
        for key in sorted(content.keys() - {"router", "static_services"}):
            self._fault(where, key, content[key], "unknown key, use router and static_services")
        self._router_section(where, content.get("router", {}))
        if "static_services" in content:
            report = partial(self._fault, where)
            self._values["static_services"] = services_of_section(
                content["static_services"], report
            )

    def static_file(self, file: Path) -> None:
        """The file of `--static-services`."""
        content = self._json(file)
        if content is not MISSING:
            report = partial(self._fault, str(file))
            self._values["static_services"] = services_of_file(content, report)

    def take_over(self, *, asked: bool) -> None:
        """Whether the port of the router that runs is to be taken over."""
        self._values["take_over"] = asked
        if asked and self._values.get("handover") is None:
            reason = "give --handover, the one that the running router was started with"
            self._fault("flags", "--take-over", MISSING, reason)

    def finish(self) -> RouterConfig:
        """The configuration, or all faults."""
        self._state_dir()
        self._api_key()
        if self._faults:
            raise ConfigError(self._faults)
        return RouterConfig(**self._values)

    def _fault(self, where: str, key: str, value: object, reason: str) -> None:
        self._faults.append(Fault(where, key, value, reason))

    def _json(self, file: Path) -> object:
        try:
            return checks.read_json(file)
        except checks.UnusableError as error:
            self._faults.append(Fault(str(file), "", MISSING, str(error)))
            return MISSING

    def _router_section(self, where: str, section: object) -> None:
        if not isinstance(section, dict):
            self._fault(where, "router", section, "not an object, give the settings in braces")
            return
        seen: dict[str, str] = {}
        given: list[_Given] = []
        for key, value in section.items():
            if key in LAUNCHER_KEYS:
                continue
            name = FILE_KEYS.get(key)
            if name is None:
                known = ", ".join(sorted((*FILE_KEYS, *LAUNCHER_KEYS)))
                self._fault(where, f"router.{key}", value, f"unknown key, use one of {known}")
            elif name in seen:
                reason = f"the same setting as {seen[name]}, keep one of them"
                self._fault(where, f"router.{key}", value, reason)
            else:
                seen[name] = key
                given.append(_Given(name, f"router.{key}", value))
        self.layer(where, given)

    def _state_dir(self) -> None:
        """Default: logs/ beside the programs, but not for a port that nobody will come back to."""
        if "state_dir" in self._values:
            folder = self._values["state_dir"]
            if folder is not None and folder.exists() and not folder.is_dir():
                self._late_fault("state_dir", folder, "not a folder, give one")
        elif self._values.get("router_port") != 0:
            folder = REPOSITORY / "logs"
            usable = folder if folder.exists() else folder.parent
            self._values["state_dir"] = folder if os.access(usable, os.W_OK) else None

    def _api_key(self) -> None:
        file = self._values.get("engine_api_key_file")
        if file is None:
            return
        try:
            key = file.read_text("ascii").strip()
        except UnicodeDecodeError:
            key = ""
        except OSError as error:
            reason = f"can't be read ({error.strerror}), give a readable file"
            self._late_fault("engine_api_key_file", file, reason)
            return
        if not key or not all("!" <= char <= "~" for char in key):
            reason = "holds no usable key, put one line of printable ASCII without blanks into it"
            self._late_fault("engine_api_key_file", file, reason)
        self._values["engine_api_key"] = key

    def _late_fault(self, name: str, value: object, reason: str) -> None:
        """A fault that is only seen when all layers are together."""
        where = self._origins[name]
        key = _flag(name) if where == "flags" else f"router.{name}"
        self._fault(where, key, value, reason)


def _of_environment(environ: Mapping[str, str]) -> Iterator[_Given]:
    for name, setting in ALL_SETTINGS.items():
        # A variable set to nothing counts as not set, as Docker's files write it.
        if setting.variable and (text := environ.get(setting.variable)):
            yield _Given(name, setting.variable, setting.check.from_text(text))


def _of_flags(flags: argparse.Namespace) -> Iterator[_Given]:
    for name, setting in ALL_SETTINGS.items():
        text = getattr(flags, name)
        if text is not None:
            yield _Given(name, _flag(name), setting.check.from_text(text))


def _flag(name: str) -> str:
    setting = ALL_SETTINGS.get(name)
    return (setting and setting.flag) or "--" + name.replace("_", "-")


class _Help(argparse.HelpFormatter):
    """Shows values as what they are: needed, though the parser lets their absence pass."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar or default_metavar)


class _Parser(argparse.ArgumentParser):
    """Reports what argparse itself refuses as a fault like any other."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError([Fault("flags", "", MISSING, f"{message}, see --help")])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="distributed_router.py",
        description="One OpenAI-compatible endpoint in front of many engines.",
        epilog="Times are seconds, fractions allowed. Flags win over the environment "
        "(PROXY_TIMEOUT_SECONDS, CACHE_TYPE_ROUTING_THRESHOLD), the environment over the file.",
        allow_abbrev=False,
        formatter_class=_Help,
    )
    # A missing value does not end the parsing: it is told together with all other faults.
    add: Callable[..., argparse.Action] = partial(parser.add_argument, nargs="?", const=NO_VALUE)
    add("--config", metavar="FILE", help="JSON file with settings and static services")
    add("--static-services", metavar="FILE", help="JSON file with services to route to for ever")
    about = "print the effective settings and exit"
    parser.add_argument("--check-config", action="store_true", help=about)
    about = "take over the port of the router that runs with the same --handover"
    parser.add_argument("--take-over", action="store_true", help=about)
    defaults = {f.name: f.default for f in dataclasses.fields(RouterConfig)}
    for name, setting in ALL_SETTINGS.items():
        default = defaults.get(name)
        shown = "" if default in (None, ()) else f" (default: {default})"
        add(_flag(name), dest=name, metavar="X", help=setting.about + shown)
    return parser
