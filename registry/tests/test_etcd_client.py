"""Calls to several members, some of which fail in one way or another."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from infinilm_registry.etcd.client import EtcdClient, EtcdError, EtcdUnavailableError
from rig.farm import Farm
from rig.relay import Fault, Line

Answer = tuple[int, Any]
OK: Answer = (200, {"header": {"revision": "7"}})
SECONDS = 0.3


class FakeMember:
    """Answers every call alike; counts them."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls = 0
        self.url = ""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v3/{path:.*}", self._handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _handle(self, request: web.Request) -> web.Response:
        self.calls += 1
        await request.read()
        status, body = self.answer
        return web.Response(status=status, text=body if isinstance(body, str) else json.dumps(body))


Scenario = Callable[[EtcdClient], Awaitable[Any]]


def play(answers: list[Answer], scenario: Scenario, before: tuple[str, ...] = ()) -> Any:
    """Run a scenario against members that answer so; (its value or error, calls of each)."""

    async def run() -> Any:
        members = [FakeMember(answer) for answer in answers]
        runners = [await member.start() for member in members]
        client = EtcdClient([*before, *(member.url for member in members)], SECONDS)
        try:
            outcome = await scenario(client)
        except (EtcdError, EtcdUnavailableError) as error:
            outcome = error
        finally:
            await client.close()
            for runner in runners:
                await runner.cleanup()
        return outcome, [member.calls for member in members]

    return asyncio.run(run())


async def ask(client: EtcdClient) -> Any:
    return await client.call("/kv/range", {})


async def ask_twice(client: EtcdClient) -> Any:
    await ask(client)
    return await ask(client)


async def ask_once(client: EtcdClient) -> Any:
    return await client.call_once("/kv/txn", {})


NO_LEADER = {"error": "etcdserver: no leader", "code": 14}
PASSING = [
    (503, NO_LEADER),
    (503, {"code": 14, "message": "etcdserver: request timed out", "details": []}),  # 3.6
    (200, {"error": {"grpc_code": 14, "message": "etcdserver: no leader"}}),  # of a stream
    (500, "<html>"),
    (200, "[1]"),
    (200, ""),
]


@pytest.mark.parametrize("answer", PASSING)
def test_the_next_member_is_asked_and_stayed_with(answer: Answer) -> None:
    outcome, calls = play([answer, OK], ask_twice)
    assert outcome == OK[1]
    assert calls == [1, 2]


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"error": "etcdserver: requested lease not found", "code": 5}),
        (400, {"code": 3, "message": "etcdserver: user name is empty", "details": []}),
    ],
)
def test_a_refusal_is_no_reason_to_ask_another(answer: Answer) -> None:
    outcome, calls = play([answer, OK], ask)
    assert type(outcome) is EtcdError
    assert "etcdserver" in str(outcome)
    assert calls == [1, 0]


def test_nobody_left_to_ask_is_told_with_every_reason() -> None:
    outcome, calls = play([(503, NO_LEADER), (500, "<html>")], ask)
    assert isinstance(outcome, EtcdUnavailableError)
    assert str(outcome).count("http://127.0.0.1") == 2
    assert "no leader" in str(outcome)
    assert calls == [1, 1]


def test_what_may_have_been_done_is_not_asked_of_another() -> None:
    outcome, calls = play([(503, NO_LEADER), OK], ask_once)
    assert isinstance(outcome, EtcdUnavailableError)
    assert outcome.uncertain
    assert calls == [1, 0]


def test_what_was_certainly_not_done_is_asked_of_another(fakes: Farm) -> None:
    refusing = fakes.engine(listening=False)
    outcome, calls = play([OK], ask_once, before=(f"http://127.0.0.1:{refusing.port}",))
    assert outcome == OK[1]
    assert calls == [1]


@pytest.mark.parametrize("line", [Line(silent=True), Line(fault=Fault("reset", at=10))])
def test_a_member_that_is_silent_or_breaks_has_a_limit(fakes: Farm, line: Line) -> None:
    behind = fakes.engine()
    relay = fakes.relay(behind.port)
    fakes.call(relay.change(down=line))
    silent = (f"http://127.0.0.1:{relay.port}",)
    assert play([OK], ask, before=silent) == (OK[1], [1])
    outcome, calls = play([OK], ask_once, before=silent)
    assert (outcome.uncertain, calls) == (True, [0])


def test_a_stream_wraps_what_it_says_and_its_end_is_told() -> None:
    stream = '{"result": {"created": true}}\n{"result": {"events": []}}\n'

    async def watch(client: EtcdClient) -> Any:
        return [message async for message in client.watch(client.endpoint, {})]

    outcome, _ = play([(200, stream)], watch)
    assert outcome == [{"created": True}, {"events": []}]
    outcome, _ = play([(503, NO_LEADER)], watch)
    assert isinstance(outcome, EtcdUnavailableError)


def test_a_watch_that_does_not_begin_has_a_limit(fakes: Farm) -> None:
    relay = fakes.relay(fakes.engine().port)
    fakes.call(relay.change(down=Line(silent=True)))

    async def watch(client: EtcdClient) -> Any:
        return [message async for message in client.watch(client.endpoint, {})]

    outcome, _ = play([], watch, before=(f"http://127.0.0.1:{relay.port}",))
    assert "no answer in time" in str(outcome)


def test_two_calls_that_fail_together_leave_a_member_once() -> None:
    async def both(client: EtcdClient) -> Any:
        first, second = client.endpoint, client._endpoints[1]
        await asyncio.gather(ask(client), ask(client))
        return (client.endpoint == second, first)

    outcome, _ = play([(503, NO_LEADER), OK, OK], both)
    assert outcome[0] is True
