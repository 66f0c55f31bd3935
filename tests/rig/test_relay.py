"""The relay does to each direction what it is told, and nothing to the other."""

import contextlib
import hashlib
import json
import time

import pytest

from rig.engine_script import pattern
from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.processes import wait_until
from rig.raw_client import RawClient, request_bytes
from rig.relay import CLEAR, Fault, How, Line, Relay

LATE = 0.2
POST = request_bytes("POST", "/v1/x", (), b"12345678")


@pytest.fixture
def engine(fakes: Farm) -> FakeEngine:
    return fakes.engine()


@pytest.fixture
def relay(fakes: Farm, engine: FakeEngine) -> Relay:
    return fakes.relay(engine.port)


def url(relay: Relay) -> str:
    return f"http://127.0.0.1:{relay.port}"


def sized(size: int) -> bytes:
    script = json.dumps({"size": size})
    return request_bytes("POST", "/v1/x", (("x-fake-script", script),), b"{}")


def test_a_clear_relay_changes_nothing(fakes: Farm, engine: FakeEngine, relay: Relay) -> None:
    body = pattern(3_000_000)
    with RawClient(url(relay)) as client:
        for _ in range(2):
            sent = request_bytes("PUT", "/v1/a?b", (("X-A", "1"),), body)
            client.send(sent)
            assert client.read().status == 200
            assert fakes.records(engine)[-1].request.raw == sent
        client.send(sized(5_000_000))
        assert client.read("POST").body == pattern(5_000_000)
    assert relay.accepted == 1
    wait_until(lambda: not relay.pairs, what="the connection of a client that left to end")
    wait_until(lambda: not engine.server.connections, what="the end to reach the target")


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_delay_makes_one_direction_late_and_can_be_lifted(
    fakes: Farm, engine: FakeEngine, relay: Relay, direction: str
) -> None:
    fakes.call(relay.change(**{direction: Line(delay=LATE)}))
    with RawClient(url(relay)) as client:
        sent = time.monotonic()
        client.send(POST)
        assert client.read("POST").status == 200
        answered = time.monotonic()
        arrived = fakes.records(engine)[0].request.arrived
        late = arrived - sent if direction == "up" else answered - arrived
        assert late >= LATE
        fakes.call(relay.change())
        client.send(POST)
        assert client.read("POST").status == 200


def test_a_delay_does_not_slow_what_follows_each_other(fakes: Farm, relay: Relay) -> None:
    fakes.call(relay.change(down=Line(delay=LATE)))
    script = json.dumps({"stream": {"chunks": 10, "interval": LATE / 10}})
    with RawClient(url(relay)) as client:
        asked = time.monotonic()
        client.send(request_bytes("POST", "/v1/x", (("x-fake-script", script),), b"{}"))
        assert len(client.read("POST").chunks) == 12
    # One after the other they would take 12 times as long.
    assert 2 * LATE <= time.monotonic() - asked < 8 * LATE


def test_a_rate_holds_and_the_other_direction_is_fast(fakes: Farm, relay: Relay) -> None:
    fakes.call(relay.change(down=Line(rate=200_000)))
    with RawClient(url(relay)) as client:
        client.send(request_bytes("POST", "/v1/x", (), pattern(2_000_000)))
        assert client.read("POST").status == 200
        asked = time.monotonic()
        client.send(sized(100_000))
        digest = hashlib.sha256(client.read("POST").body).digest()
    assert time.monotonic() - asked >= 0.45  # the last piece is not waited for
    assert digest == hashlib.sha256(pattern(100_000)).digest()


@pytest.mark.parametrize(("how", "ending"), [("cut", "closed"), ("reset", "reset")])
def test_open_connections_are_cut_or_reset_on_the_word(
    fakes: Farm, engine: FakeEngine, relay: Relay, how: How, ending: str
) -> None:
    with RawClient(url(relay)) as client:
        client.send(POST)
        client.read("POST")
        fakes.call(relay.change(down=Line(fault=Fault(how))))
        assert client.read_end(5) == ending
    wait_until(lambda: not engine.server.connections)
    fakes.call(relay.change())
    with RawClient(url(relay)) as client:
        client.send(POST)
        assert client.read("POST").status == 200


@pytest.mark.parametrize(("how", "ending"), [("cut", "closed"), ("reset", "reset")])
@pytest.mark.parametrize("at", [1, 1000, 150_000])
def test_an_answer_ends_after_so_many_bytes(
    fakes: Farm, relay: Relay, how: How, ending: str, at: int
) -> None:
    fakes.call(relay.change(down=Line(fault=Fault(how, at))))
    with RawClient(url(relay)) as client:
        client.send(sized(400_000))
        received = b""
        while data := client.read_some():
            received += data
        assert (len(received), client.ending) == (at, ending)
    with RawClient(url(relay)) as client:  # every connection counts by itself
        client.send(POST)
        assert at > 200 or client.read_some()


def test_a_request_is_reset_after_so_many_bytes(
    fakes: Farm, engine: FakeEngine, relay: Relay
) -> None:
    fakes.call(relay.change(up=Line(fault=Fault("reset", len(POST) - 1))))
    with RawClient(url(relay)) as client:
        client.send(POST)
        assert client.read_end(5) == "reset"
    wait_until(lambda: engine.server.accepted == 1 and not engine.server.connections)
    assert fakes.records(engine) == []


def test_a_half_close_leaves_the_other_direction_open(
    fakes: Farm, engine: FakeEngine, relay: Relay
) -> None:
    with RawClient(url(relay)) as client:
        client.send(POST)
        client.read("POST")
        fakes.call(relay.change(down=Line(fault=Fault("half-close"))))
        assert client.read_end(5) == "closed"
        client.send(POST)
        wait_until(lambda: len(fakes.records(engine)) == 2, what="a request behind the half-close")


def test_a_clients_own_half_close_goes_through(fakes: Farm, relay: Relay) -> None:
    with RawClient(url(relay)) as client:
        client.half_close()
        assert client.read_end(5) == "closed"


def test_in_a_black_hole_nothing_arrives_until_it_is_over(
    fakes: Farm, engine: FakeEngine, relay: Relay
) -> None:
    with RawClient(url(relay)) as client:
        client.send(POST)
        client.read("POST")
        fakes.call(relay.change(down=Line(silent=True)))
        client.send(POST)
        wait_until(lambda: len(fakes.records(engine)) == 2, what="the request to pass")
        fakes.call(engine.close())
        assert client.read_end(0.2) == "open", "neither an answer nor an end"
        fakes.call(relay.change())
        assert client.read_end(5) == "closed"


def test_after_a_black_hole_what_was_held_arrives(
    fakes: Farm, engine: FakeEngine, relay: Relay
) -> None:
    fakes.call(relay.change(up=Line(silent=True), down=CLEAR))
    with RawClient(url(relay)) as client:
        client.send(POST)
        assert client.read_end(0.1) == "open"
        assert fakes.records(engine) == []
        fakes.call(relay.change())
        assert client.read("POST").status == 200


def test_a_target_that_refuses_is_seen_as_a_reset(fakes: Farm) -> None:
    relay = fakes.relay(fakes.engine(listening=False).port)
    with contextlib.suppress(ConnectionResetError), RawClient(url(relay)) as client:
        assert client.read_end(5) == "reset"
    assert relay.accepted == 1


def test_a_client_that_resets_is_a_reset_for_the_target(
    fakes: Farm, engine: FakeEngine, relay: Relay
) -> None:
    with RawClient(url(relay)) as client:
        script = json.dumps({"stream": {}, "die": {"at": 1, "how": "stall"}})
        client.send(request_bytes("POST", "/v1/x", (("x-fake-script", script),), b"{}"))
        assert client.read_some()
        client.reset()
        wait_until(lambda: [r.outcome for r in fakes.records(engine)] == ["cancelled"])
