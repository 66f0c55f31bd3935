"""The membership on disk (D12, R27): SQLite that survives kill -9, full disks and damaged files.

All methods of a store run on one thread that nothing else uses. `write` returns only when the
change is synced; a damaged file is kept aside under a dated name, never a reason not to start.
"""

import contextlib
import fcntl
import json
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import quote

from infinilm_registry.errors import StoreError
from infinilm_registry.service import Service

LOG = logging.getLogger(__name__)
_VERSION = 1
_SCHEMA = """
    CREATE TABLE services (name TEXT PRIMARY KEY, record TEXT NOT NULL, checksum INTEGER NOT NULL);
    PRAGMA user_version = 1;
"""
_UPSERT = "INSERT OR REPLACE INTO services (name, record, checksum) VALUES (?, ?, ?)"
_COMPANIONS = ("", "-wal", "-shm")
_BUSY_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGE_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_LOCK_WAIT_SECONDS = 1.0

Connect = Callable[[Path], sqlite3.Connection]


class StoreUnusableError(Exception):
    """The store cannot be had at all: another program uses it, or its folder cannot be written."""


class Store(Protocol):
    """Where the membership is kept."""

    @property
    def degraded_reason(self) -> str | None:
        """What is wrong with it, for people; None if nothing."""

    @property
    def down(self) -> bool:
        """Whether changes cannot be kept now: reads come from memory alone, and may be stale."""

    def open(self) -> list[Service]:
        """What was acknowledged before."""

    def write(self, changes: Mapping[str, Service | None]) -> None:
        """Make `changes` (None removes) durable, all or none; StoreError if that fails."""

    def close(self) -> None:
        """Release everything."""


class MemoryStore:
    """No disk: a restart forgets."""

    down = False

    def __init__(self, degraded_reason: str | None = None) -> None:
        self.degraded_reason = degraded_reason

    def open(self) -> list[Service]:
        """Nothing."""
        return []

    def write(self, changes: Mapping[str, Service | None]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection whose commits are on disk when they return."""
    connection = sqlite3.connect(path, timeout=1.0, isolation_level=None)
    try:
        # Nobody else uses the file, and without shared memory a full disk can still be read.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


class SqliteStore:
    """One SQLite file. Remembers what is acknowledged, so that any file can be made whole."""

    def __init__(self, path: Path, connect: Connect = connect) -> None:
        self._path = path
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._acknowledged: dict[str, Service] = {}
        self._rewrite = False
        self._damage: str | None = None
        self._failure: str | None = None
        self._lock: IO[str] | None = None

    @property
    def degraded_reason(self) -> str | None:
        """A file kept aside (until the next start), a failing disk (until it works again)."""
        return "; ".join(filter(None, (self._damage, self._failure))) or None

    @property
    def down(self) -> bool:
        """The last attempt to write failed; the next one that works ends that."""
        return self._failure is not None

    def open(self) -> list[Service]:
        """Everything acknowledged that the file holds; never fails for what is in it.

        Raises:
            StoreUnusableError: another program has it open, or its folder cannot be written.
        """
        self._lock = _lock(self._path)
        found = _inspect(self._path, self._connect)
        self._acknowledged = {service.name: service for service in found.services}
        try:
            if found.problem:
                self._set_aside(found.problem)
            connection = self._attach()
            if self._rewrite:
                self._commit(connection, {})
        except (sqlite3.Error, OSError) as error:
            self._fail(error)
        return list(self._acknowledged.values())

    def write(self, changes: Mapping[str, Service | None]) -> None:
        """One transaction, synced. Without changes it makes good what failed before.

        Raises:
            StoreError: the disk is full or broken; nothing of it is remembered.
        """
        try:
            self._commit(self._attach(), changes)
        except (sqlite3.Error, OSError) as error:
            self._fail(error)
            raise StoreError(f"The registry cannot store the change: {error}", 5) from None
        self._failure = None
        for name, service in changes.items():
            if service is None:
                self._acknowledged.pop(name, None)
            else:
                self._acknowledged[name] = service

    def close(self) -> None:
        """Fold the log into the file and let others have it."""
        self._detach()
        if self._lock:
            self._lock.close()

    def _attach(self) -> sqlite3.Connection:
        there = self._path.exists()
        if self._connection and not there:
            LOG.warning("the store was removed, it is written anew path=%s", self._path)
            self._detach()  # nobody would find again what is committed there
        if self._connection is None:
            if not there:
                _create(self._path, self._connect)
                self._rewrite = True
            self._connection = self._connect(self._path)
        return self._connection

    def _detach(self) -> None:
        if self._connection:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _commit(
        self, connection: sqlite3.Connection, changes: Mapping[str, Service | None]
    ) -> None:
        execute = connection.execute
        execute("BEGIN IMMEDIATE")
        if self._rewrite:
            execute("DELETE FROM services")
            connection.executemany(_UPSERT, map(_row, self._acknowledged.values()))
        for name, service in changes.items():
            if service is None:
                execute("DELETE FROM services WHERE name = ?", (name,))
            else:
                execute(_UPSERT, _row(service))
        execute("COMMIT")
        self._rewrite = False

    def _fail(self, error: Exception) -> None:
        # A failed sync may leave the refused change in the log, to be found after a crash. The
        # next write replaces everything by what was acknowledged, on a new connection.
        self._detach()
        self._rewrite = True
        self._failure = f"the store {self._path} cannot be written: {error}"

    def _set_aside(self, problem: str) -> None:
        aside = _set_aside(self._path)
        self._damage = (
            f"the store {self._path} {problem}; it is kept as {aside.name}, "
            f"{len(self._acknowledged)} intact services were taken over"
        )
        self._rewrite = True


@dataclass(frozen=True, slots=True)
class _Found:
    services: list[Service]
    problem: str | None = None


def _inspect(path: Path, connect: Connect) -> _Found:
    """What a file holds and, if it cannot be used further, why."""
    if not path.exists():
        orphan = any(Path(f"{path}{companion}").exists() for companion in _COMPANIONS)
        return _Found([], "is gone, only its log is left" if orphan else None)
    if path.stat().st_size == 0:
        return _Found([], "is empty")
    try:
        with contextlib.closing(connect(path)) as connection:
            return _examine(connection)
    except sqlite3.Error as error:
        if _is_one_of(error, _BUSY_CODES):
            raise StoreUnusableError(f"the store {path} is locked by another program") from None
        word = "is damaged" if _is_one_of(error, _DAMAGE_CODES) else "cannot be used"
        return _Found(_salvage(path), f"{word} ({error})")


def _examine(connection: sqlite3.Connection) -> _Found:
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != _VERSION:
        return _Found([], f"has version {version}, this registry reads version {_VERSION}")
    services = list(_intact(connection))
    count = connection.execute("SELECT count(*) FROM services").fetchone()[0]
    if verdict != "ok" or count != len(services):
        return _Found(services, f"is damaged ({verdict}, {count - len(services)} broken records)")
    return _Found(services, _write_problem(connection))


def _write_problem(connection: sqlite3.Connection) -> str | None:
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        if _is_one_of(error, _BUSY_CODES):
            raise
        return f"cannot be written ({error})"
    return None


def _is_one_of(error: sqlite3.Error, codes: set[int]) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in codes


def _salvage(path: Path) -> list[Service]:
    """What can be read, with the log if there is one: the last changes stand only there."""
    services: dict[str, Service] = {}
    for mode in ("ro", "ro&immutable=1") if Path(f"{path}-wal").exists() else ("ro&immutable=1",):
        try:
            address = f"file:{quote(str(path))}?mode={mode}"
            with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
                for service in _intact(connection):
                    services.setdefault(service.name, service)  # keeps what came before an error
            break
        except sqlite3.Error:
            continue
    return list(services.values())


def _intact(connection: sqlite3.Connection) -> Iterator[Service]:
    """The services whose records carry a right checksum."""
    connection.text_factory = bytes
    for name, record, checksum in connection.execute("SELECT name, record, checksum FROM services"):
        if isinstance(record, bytes) and zlib.crc32(record) == checksum:
            with contextlib.suppress(ValueError, TypeError):
                service = Service.from_record(json.loads(record))
                if service.name.encode() == name:
                    yield service


def _row(service: Service) -> tuple[str, str, int]:
    record = json.dumps(service.as_record(), separators=(",", ":"))
    return service.name, record, zlib.crc32(record.encode())


def _create(path: Path, connect: Connect) -> None:
    """Make an empty store, complete before it bears its name: a crash never leaves half a file."""
    fresh = Path(f"{path}.new")
    for companion in _COMPANIONS:
        Path(f"{fresh}{companion}").unlink(missing_ok=True)
        Path(f"{path}{companion}").unlink(missing_ok=True)  # the log of a file that was removed
    with contextlib.closing(connect(fresh)) as connection:
        connection.executescript(_SCHEMA)
    fresh.replace(path)
    _sync_directory(path.parent)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_aside(path: Path) -> Path:
    """Rename the file, and its log with it, to a dated name that is still free."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for companion in _COMPANIONS:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{companion}").rename(f"{aside}{companion}")
    return aside


def _lock(path: Path) -> IO[str]:
    """An exclusive lock that ends with the process; waits a moment for one that is just ending."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = Path(f"{path}.lock").open("a+", encoding="utf-8")  # noqa: SIM115 - held until close
    except OSError as error:
        raise StoreUnusableError(f"the store {path} cannot be made: {error}") from None
    with contextlib.ExitStack() as at_failure:
        at_failure.callback(file.close)
        _wait_for_lock(file, path)
        at_failure.pop_all()
    return file


def _wait_for_lock(file: IO[str], path: Path) -> None:
    deadline = time.monotonic() + _LOCK_WAIT_SECONDS
    while not _locked(file, path):
        if time.monotonic() > deadline:
            raise StoreUnusableError(f"the store {path} is in use by another registry")
        time.sleep(0.05)


def _locked(file: IO[str], path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # there are file systems without locks
        raise StoreUnusableError(f"the store {path} cannot be locked: {error}") from None
    return True
