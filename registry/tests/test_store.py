import errno
import fcntl
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infinilm_registry.errors import StoreError
from infinilm_registry.service import Service
from infinilm_registry.store import SqliteStore, StoreUnusableError, connect

MakeService = Callable[..., Service]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "registry.sqlite3"


@pytest.fixture
def opened() -> Iterator[Callable[..., SqliteStore]]:
    stores: list[SqliteStore] = []

    def make(path: Path, connect: Callable[[Path], sqlite3.Connection] = connect) -> SqliteStore:
        stores.append(SqliteStore(path, connect))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def filled(path: Path, make: MakeService, count: int = 200) -> dict[str, Service]:
    """A cleanly closed store of `count` services."""
    services = {f"e{n}": make(f"e{n}", metadata={"models": [f"m{n}"] * 5}) for n in range(count)}
    store = SqliteStore(path)
    store.open()
    store.write(services)
    store.close()
    return services


def kept_aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob("registry.sqlite3.damaged-*"))


def test_what_was_written_is_read_again_with_every_field(
    path: Path, service: MakeService, opened: Callable[..., SqliteStore]
) -> None:
    full = service(
        "full",
        host="::1",
        metadata={"x": [1, 2.5, None, "ä\ud800"], "models": ["m"]},
        weight=0.5,
        instance_id="i",
        heartbeat_interval=10,
        generation=7,
    )
    first = SqliteStore(path)
    assert first.open() == []
    first.write({"full": full, "gone": service("gone")})
    first.write({"gone": None})
    first.close()
    second = opened(path)
    assert second.open() == [full]
    assert second.degraded_reason is None
    assert kept_aside(path) == []


def test_a_second_registry_cannot_have_the_same_store(
    path: Path, opened: Callable[..., SqliteStore]
) -> None:
    opened(path).open()
    with pytest.raises(StoreUnusableError, match="in use by another registry"):
        SqliteStore(path).open()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnusableError, match="cannot be made"):
        SqliteStore(tmp_path / "file" / "registry.sqlite3").open()


def test_a_file_system_without_locks_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        with pytest.raises(StoreUnusableError, match=r"cannot be locked: .*No locks available"):
            SqliteStore(path).open()


def test_another_program_that_locks_the_store_does_not_cost_its_content(
    path: Path, service: MakeService, opened: Callable[..., SqliteStore]
) -> None:
    services = filled(path, service)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN IMMEDIATE")
    refused = SqliteStore(path)
    with pytest.raises(StoreUnusableError, match="locked by another program"):
        refused.open()
    refused.close()
    other.close()
    assert kept_aside(path) == []
    again = opened(path)
    assert len(again.open()) == len(services)


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00garbage" * 1000)


def text(path: Path) -> None:
    path.write_text("this is not a database")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def torn_in_a_page(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def head_overwritten(path: Path) -> None:
    path.write_bytes(b"\xff" * 512 + path.read_bytes()[512:])


def of_another_version(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()


def without_its_table(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("DROP TABLE services")
    database.close()


def only_its_log(path: Path) -> None:
    path.rename(f"{path}-wal")


@pytest.mark.parametrize(
    "damage",
    [
        garbage,
        text,
        emptied,
        torn,
        torn_in_a_page,
        head_overwritten,
        of_another_version,
        without_its_table,
        only_its_log,
    ],
)
def test_r27_a_damaged_file_is_kept_aside_reported_and_replaced(
    damage: Callable[[Path], None],
    path: Path,
    service: MakeService,
    opened: Callable[..., SqliteStore],
) -> None:
    services = filled(path, service)
    damage(path)
    store = opened(path)
    found = store.open()
    assert all(services[one.name] == one for one in found)
    aside = kept_aside(path)
    assert len(aside) == 1
    assert aside[0].name.removesuffix("-wal") in str(store.degraded_reason)
    store.write({"new": service("new")})
    store.close()
    again = opened(path)
    assert {one.name for one in again.open()} == {"new", *(one.name for one in found)}
    assert again.degraded_reason is None


@pytest.mark.parametrize("field", [b'"name":"e', b'"models":["m'])
def test_r27_a_flipped_bit_in_a_record_costs_only_that_record(
    field: bytes, path: Path, service: MakeService, opened: Callable[..., SqliteStore]
) -> None:
    services = filled(path, service)
    raw = path.read_bytes()
    assert raw.count(field + b'77"') == 1
    path.write_bytes(raw.replace(field + b'77"', field + b'76"'))
    store = opened(path)
    assert {one.name for one in store.open()} == set(services) - {"e77"}
    assert "1 broken records" in str(store.degraded_reason)
    assert len(kept_aside(path)) == 1


def test_r27_the_log_of_a_file_that_was_removed_is_not_taken_for_that_of_the_new_one(
    path: Path, service: MakeService, opened: Callable[..., SqliteStore]
) -> None:
    services = filled(path, service)
    more = {f"more{n}": service(f"more{n}", metadata={"x": "y" * 2000}) for n in range(20)}
    first = opened(path)
    first.open()
    first.write(more)  # the log leads to pages that only the file has
    path.unlink()
    first.write({"e0": None})
    first.close()
    second = opened(path)
    assert {one.name for one in second.open()} == (services.keys() | more.keys()) - {"e0"}
    assert second.degraded_reason is None


class FailingConnection(sqlite3.Connection):
    """A disk that breaks when the test says so."""

    statement: str | None = None

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        if self.statement and sql.startswith(self.statement):
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *arguments)


def connect_failing(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, factory=FailingConnection)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@pytest.fixture
def break_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    return lambda statement: monkeypatch.setattr(FailingConnection, "statement", statement)


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT", "COMMIT", "PRAGMA"])
def test_r27_a_write_that_fails_is_refused_and_the_next_one_makes_the_file_whole(
    statement: str,
    path: Path,
    service: MakeService,
    break_disk: Callable[[str | None], None],
    opened: Callable[..., SqliteStore],
) -> None:
    store = opened(path, connect_failing)
    store.open()
    store.write({"kept": service("kept"), "removed": service("removed")})
    break_disk(statement)
    if statement == "PRAGMA":  # it is needed to connect again
        store._detach()
    for _ in range(2):
        with pytest.raises(StoreError, match="disk I/O error"):
            store.write({"refused": service("refused")})
    assert "cannot be written" in str(store.degraded_reason)
    break_disk(None)
    store.write({"removed": None, "taken": service("taken")})
    assert store.degraded_reason is None
    store.close()
    assert {one.name for one in opened(path).open()} == {"kept", "taken"}


def test_r27_a_commit_that_reached_the_log_before_its_sync_failed_is_taken_back(
    path: Path,
    service: MakeService,
    monkeypatch: pytest.MonkeyPatch,
    opened: Callable[..., SqliteStore],
) -> None:
    store = opened(path)
    store.open()
    commit = store._commit

    def committed_but_not_synced(*arguments: Any) -> None:
        commit(*arguments)
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_commit", committed_but_not_synced)
        with pytest.raises(StoreError):
            store.write({"refused": service("refused")})
    store.write({"taken": service("taken")})
    store.close()
    assert {one.name for one in opened(path).open()} == {"taken"}
