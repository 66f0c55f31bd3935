"""Read untyped settings into typed values and collect every fault on the way."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infinilm_babysitter.redact import HIDDEN, SECRET_VARIABLE

COMMAND_LINE = "command line"
ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with the configuration."""

    file: str
    """The file's path, "command line" or "environment"."""
    key: str
    value: object
    """What was given; None if nothing was."""
    reason: str

    def __str__(self) -> str:
        given = "" if self.value is None else f" = {self.value!r}"
        return f"{self.file}: {self.key}{given}: {self.reason}"


class ConfigError(Exception):
    """The configuration cannot be used; holds all faults."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


class Section:
    """One table of settings. Every key that is read becomes a known one; `finish` reports the rest.

    `flags` maps the full key of each setting that came from the command line to its flag, so that a
    fault names what the user typed.
    """

    def __init__(
        self,
        table: Mapping[str, object],
        faults: list[Fault],
        *,
        file: str = COMMAND_LINE,
        prefix: str = "",
        flags: Mapping[str, str] | None = None,
    ) -> None:
        self._table = table
        self._faults = faults
        self._file = file
        self._prefix = prefix
        self._flags = flags or {}
        self._known: set[str] = set()

    def fault(self, key: str, reason: str) -> None:
        """Record that `key` is wrong."""
        full = self._prefix + key
        flag = self._flags.get(full)
        where = COMMAND_LINE if flag else self._file
        self._faults.append(Fault(where, flag or full, self._shown(key), reason))

    def _shown(self, key: str) -> object:
        """What was given, unless it may be a secret that ended up under a wrong key."""
        secret = SECRET_VARIABLE.search(key) and not key.endswith("_file")
        return HIDDEN if secret and key in self._table else self._table.get(key)

    def has(self, key: str) -> bool:
        """Whether `key` was given; makes it a known one."""
        self._known.add(key)
        return key in self._table

    def text(self, key: str, default: str = "") -> str:
        """A string that is not empty where given."""
        if not self.has(key):
            return default
        value = self._table[key]
        if isinstance(value, str) and value.strip() and "\0" not in value:
            return value
        self.fault(key, "must be text that is not empty")
        return default

    def required(self, key: str, hint: str) -> str:
        """As `text`, but a fault with `hint` if the key is missing."""
        if not self.has(key):
            self.fault(key, f"is missing: {hint}")
        return self.text(key)

    def choice(self, key: str, allowed: Sequence[str], default: str = "") -> str:
        """One of the `allowed` words."""
        value = self.text(key, default)
        if value and value not in allowed:
            self.fault(key, f"must be one of {', '.join(allowed)}{_did_you_mean(value, allowed)}")
            return default
        return value

    def number(self, key: str, default: float, *, low: float = 0.0) -> float:
        """A finite number of at least `low`."""
        value = self._table[key] if self.has(key) else default
        number = value if isinstance(value, (int, float)) else math.nan
        if not isinstance(value, bool) and math.isfinite(number) and number >= low:
            return float(number)
        self.fault(key, f"must be a number of at least {low:g}")
        return default

    def integer(self, key: str, default: int, *, low: int = 0, high: int | None = None) -> int:
        """A whole number from `low` to `high`."""
        value = self._table[key] if self.has(key) else default
        number = value if isinstance(value, int) and not isinstance(value, bool) else low - 1
        if number >= low and (high is None or number <= high):
            return number
        top = "" if high is None else f" and at most {high}"
        self.fault(key, f"must be a whole number of at least {low}{top}")
        return default

    def optional_integer(self, key: str, *, low: int = 1) -> int | None:
        """A whole number of at least `low`, or None if not given."""
        return self.integer(key, low, low=low) if self.has(key) else None

    def flag(self, key: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self._table[key] if self.has(key) else default
        if isinstance(value, bool):
            return value
        self.fault(key, "must be true or false")
        return default

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty if not given."""
        value = self._table[key] if self.has(key) else []
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return tuple(value)
        self.fault(key, 'must be a list of texts, e.g. ["one", "two"]')
        return ()

    def variables(self, key: str) -> dict[str, str]:
        """Environment variables. Faults do not repeat values: they may be secret."""
        value = self._table[key] if self.has(key) else {}
        if not isinstance(value, dict):
            self.fault(key, 'must be a table, e.g. { NAME = "value" }')
            return {}
        good = {}
        for name, text in value.items():
            if isinstance(text, str) and "\0" not in text and name and "=" not in name:
                good[name] = text
            else:
                where = f"{self._prefix}{key}.{name}"
                self._faults.append(Fault(self._file, where, None, 'must be text, e.g. "1"'))
        return good

    def mapping(self, key: str) -> dict[str, object]:
        """A table with any content."""
        value = self._table[key] if self.has(key) else {}
        if isinstance(value, dict):
            return dict(value)
        self.fault(key, "must be a table")
        return {}

    def section(self, key: str) -> "Section":
        """The table `key`, an empty one if not given."""
        return Section(
            self.mapping(key),
            self._faults,
            file=self._file,
            prefix=f"{self._prefix}{key}.",
            flags=self._flags,
        )

    def finish(self) -> None:
        """Report every key that nobody asked for."""
        for key in self._table:
            if key not in self._known:
                hint = _did_you_mean(key, sorted(self._known))
                self.fault(key, f"is not a known key here{hint}")


def _did_you_mean(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]}?" if close else ""
