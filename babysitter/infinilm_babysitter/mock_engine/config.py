"""Flags of the mock engine, turned into one checked value."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_MODEL = "mock-model"


class ConfigError(Exception):
    """Settings that cannot be used; `faults` holds one readable line for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Checked settings.

    Rates are tokens a second and 0 means no limit; `prefill_seconds` is spent on every request
    before its first token; `max_concurrency` 0 means that no request has to wait.
    """

    host: str
    port: int
    models: tuple[str, ...]
    tokens_per_second: float
    prefill_seconds: float
    prefill_tokens_per_second: float
    max_concurrency: int
    max_model_len: int
    embedding_dimensions: int


def build_parser() -> argparse.ArgumentParser:
    """The command line; every value stays text until `check` has seen them all."""
    parser = argparse.ArgumentParser(
        prog="mock_engine",
        description="OpenAI-compatible engine without a model, for trying and testing.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    add("--port", default="0", help="port to listen on; 0 takes any free one (default)")
    add("--models", default=DEFAULT_MODEL, help="model ids, comma-separated (default %(default)s)")
    add("--tokens-per-second", default="50", help="speed of one answer; 0: no limit (default 50)")
    add("--prefill-seconds", default="0", help="fixed time before the first token (default 0)")
    add(
        "--prefill-tokens-per-second",
        default="0",
        help="speed of reading a prompt, on top of the fixed time; 0: no limit (default)",
    )
    add("--max-concurrency", default="0", help="requests beyond it wait; 0: no limit (default)")
    add(
        "--max-model-len",
        default="1048576",
        help="prompt and answer together, in tokens (default %(default)s)",
    )
    add("--embedding-dimensions", default="256", help="length of a vector (default %(default)s)")
    return parser


class _Checker:
    """Reads one flag after another and remembers what is wrong with each."""

    def __init__(self, raw: argparse.Namespace) -> None:
        self._raw = vars(raw)
        self.faults: list[str] = []

    def _fault(self, key: str, reason: str) -> None:
        flag = "--" + key.replace("_", "-")
        self.faults.append(f"command line: {flag}={self._raw[key]!r}: {reason}")

    def text(self, key: str) -> str:
        value: str = self._raw[key].strip()
        if not value:
            self._fault(key, "must not be empty")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        try:
            value = int(self._raw[key])
        except ValueError:
            self._fault(key, f"must be a whole number from {low} to {high}")
            return low
        if not low <= value <= high:
            self._fault(key, f"must be from {low} to {high}")
        return value

    def amount(self, key: str) -> float:
        try:
            value = float(self._raw[key])
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            self._fault(key, "must be a number, 0 or more")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        names = tuple(part.strip() for part in self._raw[key].split(","))
        if not all(names):
            self._fault(key, "must be model ids separated by single commas")
        if len(set(names)) < len(names):
            self._fault(key, "names a model twice")
        return names


def check(raw: argparse.Namespace) -> EngineConfig:
    """Turn parsed flags into a checked value.

    Raises:
        ConfigError: with every fault found, not only the first.
    """
    checker = _Checker(raw)
    config = EngineConfig(
        host=checker.text("host"),
        port=checker.integer("port", 0, 65535),
        models=checker.names("models"),
        tokens_per_second=checker.amount("tokens_per_second"),
        prefill_seconds=checker.amount("prefill_seconds"),
        prefill_tokens_per_second=checker.amount("prefill_tokens_per_second"),
        max_concurrency=checker.integer("max_concurrency", 0, 1_000_000),
        max_model_len=checker.integer("max_model_len", 1, 1 << 31),
        embedding_dimensions=checker.integer("embedding_dimensions", 1, 8192),
    )
    if checker.faults:
        raise ConfigError(checker.faults)
    return config
