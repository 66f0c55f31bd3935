"""R11: no answer is generated twice behind the client's back."""

import pytest

from rig.engine_script import Json
from rig.farm import Farm
from rig.flows import closed_loop, static
from rig.load_client import chat_call
from rig.routers import SLOW, StartRouter

COUNTS = [30, pytest.param(300, marks=SLOW)]


def generations(fakes: Farm, engines: list[object]) -> int:
    return sum(
        record.generation
        for engine in engines
        for record in fakes.records(engine)  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    "fault",
    [
        ({"die": {"at": "head", "how": "rst"}}, False, 502),
        ({"die": {"at": "head", "how": "fin"}}, True, 502),
        ({"delay": 5}, False, 504),
        ({"stream": {"chunks": 5}, "die": {"at": 2, "how": "rst"}}, True, 200),
    ],
    ids=["reset", "close", "time-out", "after the head"],
)
def test_a_request_that_was_sent_is_never_sent_again(
    start: StartRouter, fakes: Farm, fault: tuple[Json, bool, int], count: int
) -> None:
    script, stream, status = fault
    engines = [fakes.engine(f"e{number}") for number in range(2)]
    flags = {"response-timeout": 0.2, "first-byte-timeout": 0.2, "max-errors": 0}
    router = start(static(*engines), flags=flags)
    outcomes = closed_loop(router.url, [chat_call(stream=stream, script=script)] * count, 10)
    assert [outcome.status for outcome in outcomes] == [status] * count
    assert {outcome.kind for outcome in outcomes} == {"explained"}
    assert generations(fakes, [*engines]) == count


@pytest.mark.parametrize("count", COUNTS)
def test_a_refused_connection_is_tried_once_more_and_generates_once(
    start: StartRouter, fakes: Farm, count: int
) -> None:
    good, bad = fakes.engine("good"), fakes.engine("bad", listening=False)
    router = start(static(good, bad), flags={"health-fall": 100})
    outcomes = closed_loop(router.url, [chat_call()] * count, 5)
    assert [outcome.status for outcome in outcomes] == [200] * count
    assert generations(fakes, [good, bad]) == count
