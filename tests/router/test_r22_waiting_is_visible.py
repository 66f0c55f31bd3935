"""R22: waiting is visible, and connections do not idle out."""

import asyncio
import time

import openai
import pytest

from rig.fake_engine import FakeEngine
from rig.flows import closed_loop, first_chunks, static
from rig.load_client import LoadClient, Outcome, chat_call
from rig.routers import StartRouter

INTERVAL = 0.3
COMMENT = b":"


def comments(outcome: Outcome) -> int:
    return sum(line.startswith(COMMENT) for line in outcome.data.split(b"\n"))


def without_comments(outcome: Outcome) -> bytes:
    """The events, each with its blank line."""
    blocks = outcome.data.split(b"\n\n")
    return b"\n\n".join(block for block in blocks if not block.startswith(COMMENT))


def test_a_silent_engine_shows_as_comments_which_the_openai_sdk_ignores(
    start: StartRouter, engine: FakeEngine
) -> None:
    router = start(static(engine), flags={"sse-ping-interval": INTERVAL})
    engine.settings.script = {
        "delay": 4.5 * INTERVAL,
        "stream": {"chunks": 2, "interval": 2.5 * INTERVAL},
    }
    silent = closed_loop(router.url, [chat_call(stream=True)], 1)[0]
    print(f"R22 {router.name}: {comments(silent)} comments in {silent.ended:.2f} s")
    assert silent.kind == "ok"
    assert without_comments(silent).startswith(first_chunks(2))
    assert comments(silent) >= 3 + 3, "three before the first event, one in each gap"
    assert INTERVAL - 0.05 <= silent.first_byte <= 3 * INTERVAL
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="k", max_retries=0) as client:
        messages = [{"role": "user", "content": "hi"}]
        stream = client.chat.completions.create(model="m", messages=messages, stream=True)  # type: ignore[call-overload]
        assert len(list(stream)) == 3


def test_before_the_first_comment_an_error_keeps_its_status_and_after_it_ends_the_stream(
    start: StartRouter, engine: FakeEngine
) -> None:
    interval = 1.0  # long beside a pause of the machine: the early answer must come before it
    router = start(static(engine), flags={"sse-ping-interval": interval, "max-errors": 0})
    early, late, cut, plain = closed_loop(
        router.url,
        [
            chat_call(stream=True, script={"delay": interval / 10, "status": 429}),
            chat_call(stream=True, script={"delay": 2.5 * interval, "status": 500}),
            chat_call(
                stream=True, script={"delay": 2.5 * interval, "die": {"at": "head", "how": "rst"}}
            ),
            chat_call(script={"delay": 3.5 * interval, "json": {"a": 1}}),
        ],
        4,
    )
    assert (early.status, comments(early)) == (429, 0)
    for outcome, code in ((late, "upstream_invalid"), (cut, "upstream_reset")):
        assert outcome.status == 200
        assert 1 <= comments(outcome) <= outcome.ended / interval
        assert outcome.stream_error is not None
        assert outcome.stream_error["code"] == code
    assert (plain.status, plain.data) == (200, b'{"a": 1}'), "no comments in what is no stream"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_by_default_comments_begin_after_15_seconds(start: StartRouter, engine: FakeEngine) -> None:
    router = start(static(engine))
    engine.settings.script = {"delay": 50, "stream": {"chunks": 3}}

    async def ask() -> list[Outcome]:
        client, now = LoadClient(router.url, 60), time.monotonic()
        early = chat_call(stream=True, script={"delay": 14, "status": 429})
        sent = [client.send(call, now) for call in (early, chat_call(stream=True))]
        outcomes = await asyncio.gather(*sent)
        await client.close()
        return outcomes

    early, silent = asyncio.run(ask())
    print(
        f"R22 {router.name}: by default {comments(silent)} comments in {silent.ended:.0f} s, the"
        f" first after {silent.first_byte:.2f} s"
    )
    assert (early.status, silent.kind) == (429, "ok")
    assert comments(silent) == 3
    assert 14.9 <= silent.first_byte <= 15.5
