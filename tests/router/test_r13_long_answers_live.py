"""R13: long answers live, dead ones end."""

import asyncio

import pytest

from rig.engine_script import Json
from rig.fake_engine import FakeEngine
from rig.flows import static
from rig.load_client import LoadClient, Outcome, chat_call
from rig.processes import wait_until
from rig.routers import SLOW, StartRouter

# A fraction of the figures below in the everyday lane: first byte 3 s, idle 4 s, a token in 2 s.
# `late`: seconds that an end may come after its limit; a busy machine needs some.
SCALES = [(0.4, 5, 1.0), pytest.param(1.0, 150, 0.3, marks=SLOW)]


async def send_all(url: str, scripts: dict[str, tuple[Json, bool]]) -> dict[str, Outcome]:
    """One call for each script, all at once."""
    client = LoadClient(url, 400)
    loop = asyncio.get_running_loop()
    calls = [
        client.send(chat_call(stream=stream, script=script), loop.time())
        for script, stream in scripts.values()
    ]
    outcomes = await asyncio.gather(*calls)
    await client.close()
    return dict(zip(scripts, outcomes, strict=True))


@pytest.mark.parametrize(("scale", "tokens", "late"), SCALES)
def test_silence_ends_an_answer_and_length_does_not(
    start: StartRouter, engine: FakeEngine, scale: float, tokens: int, late: float
) -> None:
    first, idle, token = 3 * scale, 4 * scale, 2 * scale
    flags = {
        "first-byte-timeout": first,
        "response-timeout": first,
        "idle-timeout": idle,
        "max-errors": 0,
    }
    router = start(static(engine), flags=flags)
    comments = [{"text": ": still reading\n\n", "delay": token} for _ in range(tokens // 2)]
    outcomes = asyncio.run(
        send_all(
            router.url,
            {
                "slow": ({"stream": {"chunks": tokens, "interval": token}}, True),
                "prefill": ({"pieces": [*comments, "data: {}\n\n", "data: [DONE]\n\n"]}, True),
                "stall": ({"stream": {"chunks": 5}, "die": {"at": 2, "how": "stall"}}, True),
                "silent": ({"delay": 10 * first}, False),
                "silent stream": ({"delay": 10 * first}, True),
            },
        )
    )
    took = {name: round(outcome.ended, 2) for name, outcome in outcomes.items()}
    print(f"R13 {router.name}: limits {first:g} s and {idle:g} s; ended after {took}")
    assert [outcomes[name].kind for name in ("slow", "prefill")] == ["ok", "ok"]
    assert took["slow"] >= token * tokens
    assert outcomes["stall"].stream_error is not None
    assert outcomes["stall"].stream_error["code"] == "idle_timeout"
    assert idle - 0.05 <= took["stall"] <= idle + late
    for name in ("silent", "silent stream"):
        assert (outcomes[name].status, outcomes[name].kind) == (504, "explained")
        assert b'"code":"first_byte_timeout"' in outcomes[name].data
        assert first - 0.05 <= took[name] <= first + late
    wait_until(lambda: engine.in_flight == 0)


def test_a_limit_of_whole_streams_ends_them_with_an_error_event(
    start: StartRouter, engine: FakeEngine
) -> None:
    limit = 1.5
    router = start(static(engine), flags={"stream-timeout": limit, "max-errors": 1})
    lively: Json = {"stream": {"chunks": 1000, "interval": 0.05}}
    outcomes = asyncio.run(
        send_all(
            router.url,
            {
                "long": (lively, True),
                "short": ({"stream": {"chunks": 5, "interval": 0.02}}, True),
                "slow to begin": ({"delay": limit, "stream": {"chunks": 5}}, True),
                "no stream": ({"delay": 1.5 * limit}, False),
            },
        )
    )
    took = {name: round(outcome.ended, 2) for name, outcome in outcomes.items()}
    print(f"R13 {router.name}: streams may last {limit:g} s; ended after {took}")
    error = outcomes["long"].stream_error
    assert error is not None
    assert error["code"] == "idle_timeout"
    assert error["message"].endswith("the stream has lasted for 1.5 s")
    assert limit - 0.05 <= took["long"] <= limit + 1
    assert [outcomes[name].kind for name in ("short", "slow to begin", "no stream")] == ["ok"] * 3
    wait_until(lambda: engine.in_flight == 0)
    assert router.service(engine.name)["error_count"] == 0
