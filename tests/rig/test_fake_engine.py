"""The fake engine says and does exactly what its script says, and counts what happened."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from rig.engine_process import EngineProcess
from rig.engine_script import DONE, parse_script, pattern, stream_event
from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.processes import Programs, wait_until
from rig.raw_client import RawClient, Response, ask, request_bytes

CHAT = "/v1/chat/completions"


def url(engine: FakeEngine) -> str:
    return f"http://127.0.0.1:{engine.port}"


def scripted(client: RawClient, script: dict[str, Any], method: str = "POST") -> Response:
    client.send(request_bytes(method, CHAT, (("x-fake-script", json.dumps(script)),), b"{}"))
    return client.read(method)


def test_unscripted_calls_get_openai_shapes(fakes: Farm) -> None:
    engine = fakes.engine(models=["m1", "m2"])
    listed = json.loads(ask(url(engine), "GET", "/v1/models").body)
    chat = json.loads(ask(url(engine), "POST", CHAT, (), b'{"model":"m1"}').body)
    embedded = json.loads(ask(url(engine), "POST", "/v1/embeddings", (), b'{"model":"m1"}').body)
    assert [model["id"] for model in listed["data"]] == ["m1", "m2"]
    assert chat["choices"][0]["message"]["role"] == "assistant"
    assert chat["model"] == "m1"
    assert embedded["data"][0]["embedding"] == [0.5, -0.25]


def test_a_stream_ends_with_finish_reason_and_done(fakes: Farm) -> None:
    body = b'{"model":"m","stream":true}'
    answer = ask(url(fakes.engine()), "POST", CHAT, (), body)
    assert answer.whole
    assert answer.chunks[-2:] == (stream_event("m", {}, "stop"), DONE)
    assert len(answer.chunks) == 7


@pytest.mark.parametrize(
    ("how", "ending", "whole", "chunks"),
    [
        ("rst", "reset", False, 2),
        ("fin", "closed", False, 2),
        ("clean", "open", True, 2),
        ("partial", "open", True, 3),
    ],
)
def test_a_stream_dies_after_two_pieces(
    fakes: Farm, how: str, ending: str, whole: bool, chunks: int
) -> None:
    engine = fakes.engine()
    with RawClient(url(engine)) as client:
        script = {"stream": {"chunks": 4}, "die": {"at": 2, "how": how}}
        answer = scripted(client, script)
        assert (answer.whole, len(answer.chunks), answer.ending) == (whole, chunks, ending)
        assert answer.chunks[1] == stream_event("None", {"content": "1 xxxxxx"})
    wait_until(lambda: fakes.records(engine)[0].outcome == how)


def test_a_process_can_be_killed_in_the_middle_of_a_stream(run: Programs) -> None:
    engine = EngineProcess(run, "e", ["m"]).wait()
    with RawClient(f"http://127.0.0.1:{engine.port}") as client:
        answer = scripted(client, {"stream": {"chunks": 4}, "die": {"at": 3, "how": "kill"}})
    assert len(answer.chunks) == 3
    assert not answer.whole
    assert engine.program.wait() == -9
    engine.close()


def test_a_client_that_leaves_a_stalled_engine_is_counted_with_its_time(fakes: Farm) -> None:
    engine = fakes.engine()
    with RawClient(url(engine)) as client:
        script = json.dumps({"stream": {}, "die": {"at": 1, "how": "stall"}})
        client.send(request_bytes("POST", CHAT, (("x-fake-script", script),), b"{}"))
        wait_until(lambda: engine.in_flight == 1)
        assert client.read_some()
    record = wait_until(lambda: [r for r in fakes.records(engine) if r.outcome == "cancelled"])[0]
    assert record.ended
    assert record.ended >= record.request.arrived
    assert engine.in_flight == 0


def test_raw_answers_go_out_as_they_are_written(fakes: Farm) -> None:
    with RawClient(url(fakes.engine())) as client:
        script = {"raw": ["HTTP/1.1 20", {"text": "0 OK\r\nContent-Length: 9\r\n\r\nshort"}]}
        answer = scripted(client, script)
    assert answer.body == b"short"
    assert not answer.whole
    assert answer.ending == "closed"


def test_bodies_statuses_headers_and_codings_follow_the_script(fakes: Farm) -> None:
    with RawClient(url(fakes.engine())) as client:
        sized = scripted(
            client, {"size": 70_000, "headers": [["Set-Cookie", "a"], ["Set-Cookie", "b"]]}
        )
        packed = scripted(client, {"body": "text", "gzip": True, "status": 418})
    assert sized.body == pattern(70_000)
    assert sized.head.all("set-cookie") == ["a", "b"]
    assert packed.status == 418
    assert packed.get("content-encoding") == "gzip"


def test_a_script_is_followed_with_its_probability_and_alike_in_every_run(fakes: Farm) -> None:
    runs = []
    for _ in range(2):
        engine = fakes.engine(seed=7, script={"status": 503, "share": 0.25})
        with RawClient(url(engine)) as client:
            statuses = []
            for _ in range(100):
                client.send(request_bytes("POST", CHAT, (), b"{}"))
                statuses.append(client.read("POST").status)
        runs.append(statuses)
    assert runs[0] == runs[1]
    assert 10 <= runs[0].count(503) <= 40
    assert runs[0].count(503) + runs[0].count(200) == 100


def test_until_it_is_ready_an_engine_answers_503_to_everything(run: Programs) -> None:
    flags = ("--settings", '{"ready_after": 1000}')
    engine = EngineProcess(run, "e", ["m"], flags=flags).wait()
    base = f"http://127.0.0.1:{engine.port}"
    calls = (("GET", "/v1/models"), ("GET", "/health"), ("POST", CHAT))
    assert [ask(base, *call).status for call in calls] == [503, 503, 503]
    assert engine.state()["generations"] == 0
    engine.apply(ready_after=0)
    assert [ask(base, *call).status for call in calls] == [200, 200, 200]
    engine.close()


def test_counters_go_on_where_records_are_dropped(fakes: Farm) -> None:
    engine = fakes.engine(records_kept=2)
    body = b"12345"
    for _ in range(5):
        assert ask(url(engine), "POST", "/v1/x", (), body).status == 200
    state = engine.state()
    assert (state["hits"], state["generations"], len(fakes.records(engine))) == (5, 5, 2)
    assert state["raw_bytes"] == 5 * len(request_bytes("POST", "/v1/x", (), body))
    fakes.apply(engine, reset=True)
    assert (engine.state()["hits"], engine.state()["raw_bytes"]) == (0, 0)


def test_what_runs_through_a_reset_is_still_counted_down_to_zero(fakes: Farm) -> None:
    engine = fakes.engine()
    with RawClient(url(engine)) as client:
        script = json.dumps({"stream": {}, "die": {"at": 1, "how": "stall"}})
        client.send(request_bytes("POST", CHAT, (("x-fake-script", script),), b"{}"))
        wait_until(lambda: engine.in_flight == 1)
        fakes.apply(engine, reset=True)
        assert (engine.in_flight, engine.max_in_flight) == (1, 1)
    wait_until(lambda: engine.in_flight == 0)


def test_an_engine_floods_its_log_and_says_how_long_a_write_took(run: Programs) -> None:
    engine = EngineProcess(run, "e", ["m"]).wait()
    engine.apply(flood={"bytes": 500_000, "text": "noise\n", "rate": 1e7})
    floods = wait_until(lambda: engine.state()["floods"], what="the end of the flood")
    assert floods[0]["bytes"] == 500_000
    assert 0 < floods[0]["longest"] < 10
    engine.program.stop()
    assert engine.program.output.count("noise") >= 500_000 // len("noise\n") - 20
    engine.close()


def test_an_engine_forks_a_worker_that_outlives_it(run: Programs) -> None:
    engine = EngineProcess(run, "e", ["m"], flags=("--worker",)).wait()
    (worker,) = engine.state()["workers"]
    engine.close()
    engine.program.stop()
    try:
        os.kill(worker, signal.SIGTERM)
        assert os.getsid(worker) == worker
        status = Path(f"/proc/{worker}/status").read_text()
        ignored = int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16)
        assert ignored & 1 << signal.SIGTERM - 1
    finally:
        os.kill(worker, signal.SIGKILL)


def test_what_came_in_is_kept_byte_for_byte(fakes: Farm) -> None:
    engine = fakes.engine()
    sent = request_bytes("PUT", "/v1/a%2Fb?x=%20", (("X-A", "1"), ("x-a", "2")), b"\x00\xff")
    with RawClient(url(engine)) as client:
        client.send(sent, bytewise=True)
        client.read()
    record = fakes.records(engine)[0]
    assert record.request.raw == sent
    assert record.request.body == b"\x00\xff"


def test_pipelined_requests_are_two_records(fakes: Farm) -> None:
    engine = fakes.engine()
    one, two = request_bytes("POST", "/one", (), b"1"), request_bytes("POST", "/two", (), b"2")
    with RawClient(url(engine)) as client:
        client.send(one + two)
        assert [json.loads(client.read().body)["path"] for _ in "12"] == ["/one", "/two"]
    assert [record.request.raw for record in fakes.records(engine)] == [one, two]


def test_rubbish_is_reported_as_a_wire_error(fakes: Farm) -> None:
    engine = fakes.engine()
    with RawClient(url(engine)) as client:
        client.send(b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n1")
        assert client.read().status == 400
    assert len(engine.server.errors) == 1
    assert fakes.records(engine) == []


def test_control_changes_health_models_and_listening(run: Programs) -> None:
    engine = EngineProcess(run, "e", ["m"]).wait()
    base, beside = f"http://127.0.0.1:{engine.port}", f"http://127.0.0.1:{engine.port + 1}"
    assert ask(beside, "GET", "/health").status == 200
    engine.apply(health=503, models=["new"])
    assert ask(beside, "GET", "/health").status == 503
    assert b"new" in ask(base, "GET", "/v1/models").body
    engine.apply(listening=False)
    with pytest.raises(ConnectionRefusedError):
        RawClient(base)
    engine.apply(listening=True)
    assert ask(base, "POST", "/v1/x").status == 200
    assert engine.state()["hits"] == 1
    assert [name for _, name in engine.state()["probes"]] == [
        *("sidecar /health", "sidecar /health", "/v1/models")
    ]
    engine.close()


def test_an_idle_connection_is_closed_when_told_to(fakes: Farm) -> None:
    engine = fakes.engine(idle_close=0.05)
    with RawClient(url(engine)) as client:
        client.send(request_bytes("POST", "/v1/x"))
        assert client.read().status == 200
        assert client.read_end(5) == "closed"


def test_a_misspelt_script_is_an_error_not_a_default() -> None:
    with pytest.raises(ValueError, match="unknown script keys \\['statsu'\\]"):
        parse_script({"statsu": 500}, {}, "/")


def test_held_answers_go_on_one_by_one_as_they_are_released(fakes: Farm) -> None:
    engine = fakes.engine()
    script = {"delay": "held", "pieces": ["a", {"text": "b", "delay": "held"}]}
    with RawClient(url(engine)) as client:
        fields = (("x-fake-script", json.dumps(script)),)
        client.send(request_bytes("POST", CHAT, fields, b"{}"))
        wait_until(lambda: engine.in_flight == 1, what="held")
        fakes.apply(engine, release=1)
        came = b""
        while not came.endswith(b"\r\n1\r\na\r\n"):
            came += client.read_some()
        fakes.apply(engine, release=1)
        rest = b"1\r\nb\r\n0\r\n\r\n"
        while not came.endswith(rest) and (more := client.read_some()):
            came += more
    assert came.endswith(rest)


def test_a_held_answer_ends_when_its_client_leaves(fakes: Farm) -> None:
    engine = fakes.engine(script={"delay": "held"})
    with RawClient(url(engine)) as client:
        client.send(request_bytes("POST", CHAT, (), b"{}"))
        wait_until(lambda: engine.in_flight == 1, what="held")
    wait_until(lambda: engine.in_flight == 0, what="let go of")
    assert [record.outcome for record in fakes.records(engine)] == ["cancelled"]
