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
SCALES = [(0.15, 8), pytest.param(1.0, 150, marks=SLOW)]


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


@pytest.mark.parametrize(("scale", "tokens"), SCALES)
def test_silence_ends_an_answer_and_length_does_not(
    start: StartRouter, engine: FakeEngine, scale: float, tokens: int
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
    assert idle - 0.05 <= took["stall"] <= idle + 0.5
    for name in ("silent", "silent stream"):
        assert (outcomes[name].status, outcomes[name].kind) == (504, "explained")
        assert b'"code":"first_byte_timeout"' in outcomes[name].data
        assert first - 0.05 <= took[name] <= first + 0.3
    wait_until(lambda: engine.in_flight == 0)
