"""What generate_nginx_config.py and render_service_config.py share: faults of input, and output."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

EXIT_USAGE = 64
EXIT_IO = 74


class ConfigError(Exception):
    """Everything that is wrong with flags and files; one line per fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True)
class Rule:
    """What one key of an entry may hold."""

    accepts: Callable[[object], bool]
    wanted: str
    required: bool = True


def is_integer(value: object, least: int, most: int | None = None) -> bool:
    """Whether `value` is an integer (JSON's true and false are not) within the bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least <= value and (most is None or value <= most)


def entry_faults(where: str, entry: object, rules: Mapping[str, Rule]) -> list[str]:
    """Every fault of one object of a configuration."""
    if not isinstance(entry, dict):
        needed = ", ".join(key for key, rule in rules.items() if rule.required)
        return [f"{where}: {json.dumps(entry)} is not an object; give at least {needed}"]
    faults = [
        f"{where}: unknown key {key!r}; known are {', '.join(rules)}"
        for key in entry
        if key not in rules
    ]
    for key, rule in rules.items():
        if key in entry and not rule.accepts(entry[key]):
            faults.append(f"{where}: {key} is {json.dumps(entry[key])}; it must be {rule.wanted}")
        elif key not in entry and rule.required:
            faults.append(f"{where}: {key} is missing; give {rule.wanted}")
    return faults


def read_text(path: Path) -> str:
    """The text of a file; ConfigError if it cannot be read."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None


def read_json(path: Path) -> object:
    """The JSON in a file; ConfigError if it cannot be read or is not JSON."""
    try:
        value: object = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError([f"{path}:{error.lineno}: not JSON: {error.msg}"]) from None
    return value


class Parser(argparse.ArgumentParser):
    """argparse with the exit code that all programs here use for bad flags."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message; exit."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"error: {message}\n")


def write(build: Callable[[], str], output: Path | None) -> int:
    """Write what `build` makes to a file, None = standard output; returns the exit code."""
    try:
        text = build()
    except ConfigError as error:
        sys.stderr.write("".join(f"error: {fault}\n" for fault in error.faults))
        return EXIT_USAGE
    if output is None:
        sys.stdout.write(text)
        return 0
    try:
        output.write_text(text, "utf-8")
    except OSError as error:
        sys.stderr.write(f"error: {output}: cannot be written: {error}\n")
        return EXIT_IO
    sys.stdout.write(f"written: {output}\n")
    return 0
