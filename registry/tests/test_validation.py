import json
from collections.abc import Callable
from typing import Any

import pytest

from infinilm_registry.errors import InvalidRequestError
from infinilm_registry.service import Sender, Service
from infinilm_registry.validation import (
    parse_heartbeat,
    parse_json,
    parse_registration,
    parse_update,
    updated,
)

Body = Callable[..., dict[str, Any]]


def faults_of(call: Callable[..., object], *arguments: object) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        call(*arguments)
    return {fault.key: fault.reason for fault in caught.value.faults}


def test_all_faults_of_a_registration_are_reported_at_once() -> None:
    wrong = {
        "name": "../x",
        "host": "0.0.0.0",
        "port": "8100",
        "hostname": 5,
        "url": "ftp://x",
        "timestamp": "yesterday",
        "metadata": [],
        "weight": -1,
        "instance_id": "a b",
        "heartbeat_interval": True,
    }
    assert set(faults_of(parse_registration, wrong, ())) == {*wrong, "status"}


def test_the_first_fault_is_the_text_that_old_clients_know(body: Body) -> None:
    del (incomplete := body())["port"]
    with pytest.raises(InvalidRequestError, match=r"^Missing required field: port$"):
        parse_registration(incomplete, ())


@pytest.mark.parametrize("port", [0, -1, 65_535, 70_000, True, 80.0, "80", [80]])
def test_r34_a_port_without_room_for_the_babysitter_or_of_another_type_is_refused(
    port: object, body: Body
) -> None:
    assert "port" in faults_of(parse_registration, body(port=port, url="http://127.0.0.1:80"), ())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a\n", "ä", "x" * 129, 5])
def test_a_name_that_cannot_stand_in_a_path_is_refused(name: object, body: Body) -> None:
    assert "name" in faults_of(parse_registration, body(name=name), ())


@pytest.mark.parametrize(
    "metadata",
    [
        {"models": "m"},
        {"models": [1]},
        {"models": ["m"] * 257},
        {"models_list": ["m"]},
        {"x": "y" * 16_400},
        {"x": float("inf")},
        json.loads("[" * 40 + "]" * 40),
        {"x": json.loads("[" * 40 + "]" * 40)},
        "text",
    ],
    ids=lambda value: repr(value)[:30],
)
def test_metadata_beyond_its_limits_is_refused(metadata: object, body: Body) -> None:
    assert "metadata" in faults_of(parse_registration, body(metadata=metadata), ())


@pytest.mark.parametrize(
    "url", ["http://127.0.0.2:1002/health", "http://169.254.169.254/", "file:///x", 5]
)
def test_r34_a_health_url_on_another_host_is_refused(url: object, body: Body) -> None:
    wrong = body(metadata={"health_url": url})
    assert set(faults_of(parse_registration, wrong, ())) == {"metadata.health_url"}


@pytest.mark.parametrize(
    "weight", [float("nan"), float("inf"), "1", True, -0.5, pytest.param(10**400, id="long")]
)
def test_a_weight_that_is_no_share_is_refused(weight: object, body: Body) -> None:
    assert "weight" in faults_of(parse_registration, body(weight=weight), ())


def test_extras_are_ignored_and_nulls_mean_absent(body: Body) -> None:
    given = body(extra={"deep": [1]}, metadata=None, weight=None, instance_id=None, timestamp=None)
    service = parse_registration(given, ())
    assert (service.metadata, service.weight, service.instance_id) == ({}, 1, None)
    assert service.timestamp.endswith("+00:00")


def test_a_timestamp_without_zone_gets_an_offset(body: Body) -> None:
    service = parse_registration(body(timestamp="2025-03-01T12:00:00.123456789"), ())
    assert service.timestamp.endswith("+00:00")
    assert parse_registration(body(timestamp=0), ()).timestamp == "1970-01-01T00:00:00+00:00"


def test_moving_a_service_moves_its_url(service: Callable[..., Service]) -> None:
    moved = updated(service(url="http://127.0.0.1:1001/api"), parse_update({"port": 2002}), ())
    assert moved.url == "http://127.0.0.1:2002/api"
    moved = updated(moved, parse_update({"host": "::1"}), ())
    assert moved.url == "http://[::1]:2002/api"


def test_an_update_whose_parts_do_not_fit_is_refused(service: Callable[..., Service]) -> None:
    changes = parse_update({"url": "http://elsewhere:1001"})
    assert set(faults_of(updated, service(), changes, ())) == {"url"}
    wrong = {"port": 0, "weight": "x", "metadata": 1, "name": 5}
    assert set(faults_of(parse_update, wrong)) == {"port", "weight", "metadata"}


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff", b"NaN", b'{"a":Infinity}', b"[-1e999]", b"[" * 60_000]
)
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequestError, match=r"^Invalid JSON$"):
        parse_json(raw)


@pytest.mark.parametrize("value", [[], "x", 1, None])
def test_a_body_that_is_no_object_is_refused(value: object) -> None:
    assert set(faults_of(parse_registration, value, ())) == {"body"}


def test_a_heartbeat_may_carry_status_instance_and_generation() -> None:
    body = {"status": "draining", "instance_id": "body", "generation": 1}
    beat = parse_heartbeat(body, {"instance_id": "query", "generation": "2"})
    assert (beat.status, beat.sender) == ("draining", Sender("query", 2))
    assert parse_heartbeat(body, {}).sender == Sender("body", 1)
    wrong = {"status": 5, "instance_id": "", "generation": 0}
    assert set(faults_of(parse_heartbeat, wrong, {})) == set(wrong)


@pytest.mark.parametrize("generation", ["0", "-1", "x", "1.5", "", "²"])
def test_a_generation_in_the_query_is_a_number_from_1(generation: str) -> None:
    assert "generation" in faults_of(parse_heartbeat, {}, {"generation": generation})
