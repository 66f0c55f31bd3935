"""What is said to etcd and read from it: places, keys, messages, registrations."""

import json
from typing import Any

import pytest

from infinilm_registry.etcd import wire
from infinilm_registry.etcd.picture import decode, encode
from infinilm_registry.etcd.place import Place
from infinilm_registry.service import Service


def test_a_store_names_members_and_a_cluster() -> None:
    place = Place.parse("etcd://10.0.0.1:2379,etcd-2,[::1]:4001/east")
    assert place.endpoints == ("http://10.0.0.1:2379", "http://etcd-2:2379", "http://[::1]:4001")
    assert place.service_key("e0") == "/infinilm/east/services/e0"
    assert Place.parse("etcd://h:1,h:1").endpoints == ("http://h:1",)
    assert Place.parse("etcd://h").prefix == "/infinilm/default/"


@pytest.mark.parametrize(
    ("store", "reason"),
    [
        ("etcd://", "must look like"),
        ("etcd://h:1?x=1", "must look like"),
        ("etcd://user:secret@h:1", "passwords"),
        ("etcd://h:1/a/b", "after the hosts"),
        ("etcd://h:1,,g:2", "is not HOST:PORT"),
        ("etcd://h:70000", "is not HOST:PORT"),
        ("etcd://h_:2379 x", "is not HOST:PORT"),
    ],
)
def test_what_is_no_store_is_told(store: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Place.parse(store)


def test_keys_are_told_apart() -> None:
    place = Place.parse("etcd://h")
    assert place.named_by_service_key(place.service_key("a/b")) == "a/b"
    assert place.named_by_service_key(place.alive_key("a")) is None
    assert place.named_by_alive_key(place.alive_key("a")) == "a"


def test_a_prefix_ends_before_the_next_one() -> None:
    assert wire.prefix_range("/a/") == {"key": wire.text("/a/"), "range_end": wire.text("/a0")}


def test_lines_are_cut_wherever_the_pieces_end() -> None:
    stream = b'{"result": {"n": 1}}\n\n{"result":\t{"n": 22}}\n{"result"'
    for size in range(1, len(stream)):
        splitter = wire.LineSplitter()
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        values = [value for piece in pieces for value in splitter.feed(piece)]
        assert values == [{"result": {"n": 1}}, {"result": {"n": 22}}]
        assert list(splitter.feed(b": 3}\n")) == [{"result": 3}]


def test_a_message_tells_of_stored_and_removed_keys() -> None:
    # As etcd 3.4 sends it.
    message = {
        "header": {"revision": "9007199254740993"},
        "events": [
            {
                "kv": {
                    "key": wire.text("/a/x"),
                    "create_revision": "2",
                    "mod_revision": "9007199254740992",
                    "version": "1",
                    "value": wire.text("1"),
                    "lease": "2324035609077792005",
                }
            },
            {"type": "DELETE", "kv": {"key": wire.text("/a/y"), "mod_revision": "3"}},
        ],
    }
    assert wire.revision_of(message) == 9007199254740993
    now = wire.KeyValue("/a/x", b"1", 9007199254740992, 2, 2324035609077792005)
    assert list(wire.read_changes(message)) == [
        wire.Change("/a/x", 9007199254740992, now),
        wire.Change("/a/y", 3, None),
    ]


def test_a_registration_comes_back_as_it_was(service: Any) -> None:
    given: Service = service(
        metadata={"models": ["m"]}, instance_id="i", heartbeat_interval=10, generation=7, weight=2.5
    )
    assert decode(encode(given), "engine", ()) == given


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "other"}, "registration of 'other'"),
        ({"port": "x"}, "port"),
        ({"host": "169.254.1.1", "url": "http://169.254.1.1:1001"}, "host"),
        ({"generation": "x"}, "x"),
        ({"weight": 10**400}, "weight"),
    ],
)
def test_what_others_wrote_is_checked(
    service: Any, changes: dict[str, object], reason: str
) -> None:
    record = json.dumps({**service().as_record(), **changes}).encode()
    with pytest.raises(ValueError, match=reason):
        decode(record, "engine", ())


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"\xff", b"[1]", b"[" * 100_000, b"null", b'{"name": 1}', b'{"generation": 1e999}'),
        b'{"generation": Infinity}',
    ],
)
def test_garbage_is_no_registration(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(value, "engine", ())
