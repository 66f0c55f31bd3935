"""What it takes to start one engine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Place:
    """Where the engine is to listen."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Launch:
    """A command to run as the engine, and what the babysitter must know about its kind."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the babysitter's own environment."""
    cwd: str | None = None
    """Below the babysitter's own folder unless absolute; None: that folder itself."""
    health_path: str | None = None
    """Engines whose HTTP side can outlive their core: a lasting 503 here calls for a restart."""
    ends_to_recover: bool = False
    """An end after having been ready is the engine's way to recover, not a crash."""
    models: tuple[str, ...] = ()
    """Served models as far as the settings tell, for engines without a models list."""
    notes: tuple[str, ...] = ()
    """Settings that this engine cannot take, for the log."""


Builder = Callable[[Place], Launch]


def is_file(path: str | Path) -> bool:
    """Whether `path` is a file that we can see: text too long for a path is none."""
    try:
        return Path(path).is_file()
    except OSError:
        return False
