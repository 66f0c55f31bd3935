"""The forms of etcd's JSON gateway: keys in base64, 64-bit numbers as texts. Pure."""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as etcd holds it; `lease` is 0 for a key that no lease holds."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    lease: int = 0

    @classmethod
    def of(cls, raw: Json) -> "KeyValue":
        """From the gateway's form; numbers that are 0 and values that are empty are left out."""
        return cls(
            key=b64decode(raw["key"]).decode("utf-8", "surrogateescape"),
            value=b64decode(raw.get("value", "")),
            mod_revision=int(raw.get("mod_revision", 0)),
            create_revision=int(raw.get("create_revision", 0)),
            lease=int(raw.get("lease", 0)),
        )


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a key at a revision; `now` is None when it is gone."""

    key: str
    revision: int
    now: KeyValue | None


def text(value: str | bytes) -> str:
    """A key or value for a request."""
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return b64encode(raw).decode()


def prefix_range(prefix: str) -> dict[str, str]:
    """All keys that begin with `prefix`, for a range or a watch."""
    after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    return {"key": text(prefix), "range_end": text(after)}


def unchanged(key: str, mod_revision: int) -> dict[str, object]:
    """The condition that `key` is still that of a revision; 0: there is none of that name."""
    return {"key": text(key), "target": "MOD", "mod_revision": str(mod_revision)}


def put(key: str, value: bytes, lease: int = 0) -> dict[str, object]:
    """A transaction's request to store; with a lease, the key ends with it."""
    held = {"lease": str(lease)} if lease else {}
    return {"request_put": {"key": text(key), "value": text(value), **held}}


def delete(key: str) -> dict[str, object]:
    """A transaction's request to remove."""
    return {"request_delete_range": {"key": text(key)}}


def get(key: str) -> dict[str, object]:
    """A transaction's request to read."""
    return {"request_range": {"key": text(key)}}


def revision_of(answer: Json) -> int:
    """The revision of etcd at which it answered."""
    return int(answer["header"]["revision"])


def read_keys(answer: Json) -> list[KeyValue]:
    """The keys that a range returned."""
    return [KeyValue.of(raw) for raw in answer.get("kvs", ())]


def read_changes(answer: Json) -> Iterator[Change]:
    """The changes that one message of a watch tells."""
    for event in answer.get("events", ()):
        now = KeyValue.of(event["kv"])
        gone = event.get("type") == "DELETE"
        yield Change(now.key, now.mod_revision, None if gone else now)


class LineSplitter:
    """Cuts a stream into its lines, however long; each holds one JSON value."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[Any]:
        """The values of the lines that `data` completes."""
        *ended, rest = data.split(b"\n")
        for line in ended:
            whole = b"".join((*self._pieces, line))
            self._pieces.clear()
            if whole.strip():
                yield json.loads(whole)
        if rest:
            self._pieces.append(rest)
