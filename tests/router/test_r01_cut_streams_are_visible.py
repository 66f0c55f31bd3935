"""R1: a cut answer is never taken for a finished one."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from rig.engine_process import EngineProcess
from rig.engine_script import Json
from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import closed_loop, cut_faults, static
from rig.load_client import Call, Outcome, chat_call
from rig.processes import Programs, wait_until
from rig.raw_client import RawClient, Response, request_bytes
from rig.routers import SLOW, Router, StartRouter

CHUNKS, BEFORE = 100, 20
COUNTS = [10, pytest.param(100, marks=SLOW)]


def dying(how: str) -> Json:
    return {"stream": {"chunks": CHUNKS}, "die": {"at": BEFORE, "how": how}}


def cut_call(how: str, number: int) -> Call:
    call = chat_call(stream=True, script=dying(how))
    return Call(call.target, call.body, (*call.headers, ("x-request-id", f"cut-{number}")))


def seconds_after_fault(fakes: Farm, engine: FakeEngine, outcomes: list[Outcome]) -> list[float]:
    """How long after its engine's fault each client saw the end."""
    faults = {
        record.request.head.get("x-request-id"): record.ended for record in fakes.records(engine)
    }
    ends = {f"cut-{number}": out.due + out.ended for number, out in enumerate(outcomes)}
    return [end - (faults[name] or 0.0) for name, end in ends.items()]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("how", ["rst", "fin", "clean"])
def test_a_stream_that_an_engine_cuts_ends_in_one_error_event(
    start: StartRouter, fakes: Farm, engine: FakeEngine, how: str, count: int
) -> None:
    router = start(static(engine))
    calls = [cut_call(how, number) for number in range(count)]
    outcomes = closed_loop(router.url, calls, 10)
    faults = [cut_faults(out.data, whole=out.whole, chunks=BEFORE) for out in outcomes]
    slowest = max(seconds_after_fault(fakes, engine, outcomes))
    print(
        f"R1 {router.name}: {faults.count([])} of {count} streams cut by {how} ended as promised,"
        f" at most {slowest * 1e3:.0f} ms after the fault"
    )
    assert faults == [[]] * count
    assert slowest <= 1.0
    wait_until(lambda: router.in_flight() == 0)


@pytest.mark.parametrize("count", COUNTS)
def test_streams_of_an_engine_that_is_killed_end_in_one_error_event(
    start: StartRouter, run: Programs, count: int
) -> None:
    engine = EngineProcess(run, "e0", ["m"]).wait()
    router = start([engine.static(metadata={"models": ["m"]})])
    clients = [RawClient(router.url) for _ in range(count)]
    for number, client in enumerate(clients):
        call = cut_call("stall", number)
        client.send(request_bytes("POST", call.target, call.headers, call.body))
    wait_until(lambda: stalled(engine) == count, what="all streams at the chunk before the fault")
    killed = time.monotonic()
    engine.program.kill()
    answers = [client.read("POST") for client in clients]  # each until its end
    slowest = time.monotonic() - killed
    for client in clients:
        client.reset()
    engine.close()
    faults = [cut_faults(a.body, whole=a.whole, chunks=BEFORE) for a in answers]
    print(
        f"R1 {router.name}: {faults.count([])} of {count} streams cut by kill -9 ended as promised,"
        f" at most {slowest * 1e3:.0f} ms after it"
    )
    assert faults == [[]] * count
    assert slowest <= 1.0


def stalled(engine: EngineProcess) -> int:
    return sum(record["outcome"] == "stall" for record in engine.state()["records"])


def sdk_stream(client: openai.OpenAI, script: Json) -> int:
    """Read a stream with the official client; how many chunks came."""
    chunks = 0
    stream = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        extra_headers={"x-fake-script": json.dumps(script)},
    )
    for _ in stream:
        chunks += 1
    return chunks


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("how", ["rst", "fin", "clean"])
def test_the_openai_sdk_raises_on_a_cut_stream(
    start: StartRouter, engine: FakeEngine, how: str, count: int
) -> None:
    router = start(static(engine))
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="k", max_retries=0) as client:
        assert sdk_stream(client, {"stream": {"chunks": CHUNKS}}) == CHUNKS + 1
        for _ in range(count):
            with pytest.raises(openai.APIError):
                sdk_stream(client, dying(how))


@pytest.mark.parametrize("count", COUNTS)
def test_the_openai_sdk_raises_in_every_stream_of_an_engine_that_is_killed(
    start: StartRouter, run: Programs, count: int
) -> None:
    engine = EngineProcess(run, "e0", ["m"]).wait()
    router = start([engine.static(metadata={"models": ["m"]})])
    with (
        openai.OpenAI(base_url=f"{router.url}/v1", api_key="k", max_retries=0) as client,
        ThreadPoolExecutor(count) as threads,
    ):
        streams = [threads.submit(sdk_stream, client, dying("stall")) for _ in range(count)]
        wait_until(lambda: stalled(engine) == count, what="all streams to stall")
        engine.program.kill()
        raised = [stream.exception(15) for stream in streams]
    right = [error for error in raised if isinstance(error, openai.APIError)]
    engine.close()
    print(f"R1 {router.name}: the SDK raised in {len(right)} of {count} streams at a kill -9")
    assert len(right) == count, raised


def test_the_openai_sdk_raises_on_a_stream_that_is_cut_inside_an_event(
    start: StartRouter, engine: FakeEngine
) -> None:
    router = start(static(engine))
    # The half event has been passed on already: the SDK takes offence at its JSON.
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="k", max_retries=0) as client:
        for _ in range(5):
            with pytest.raises((openai.APIError, json.JSONDecodeError)):
                sdk_stream(client, dying("partial"))


@pytest.mark.parametrize("count", COUNTS)
def test_a_json_answer_that_is_cut_is_never_a_short_200(
    start: StartRouter, engine: FakeEngine, count: int
) -> None:
    router = start(static(engine))
    answers = [cut_json(router, late=number % 2 == 0) for number in range(count)]
    shorts = [answer for answer in answers if answer.whole and answer.status == 200]
    print(f"R1 {router.name}: {len(shorts)} of {count} cut JSON answers looked whole")
    assert [answer.whole for answer in answers] == [False] * count
    assert {answer.body for answer in answers} == {b'{"half": '}


def cut_json(router: Router, *, late: bool) -> Response:
    """The answer to a call that the engine cuts, at once or after what it sent has arrived."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
    raw = [head + '{"half": ', {"text": "", "delay": 0.05}] if late else head + '{"half": '
    call = chat_call(script={"raw": raw})
    with RawClient(router.url) as client:
        client.send(request_bytes("POST", call.target, call.headers, call.body))
        return client.read("POST")
