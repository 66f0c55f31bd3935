"""Where probes go: to a babysitter, to the engine itself, or to what metadata names."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from rig.processes import free_port


class Case:
    """Who listens where, and what the prober should make of it."""

    def __init__(self, up: bool, asked: list[str], sitter: Any = None, itself: Any = None) -> None:
        self.up, self.asked, self.sitter, self.itself = up, asked, sitter, itself


Answer = tuple[int, dict[str, str]]
HERE: Answer = (200, {})
LOADING: Answer = (503, {})
KEY: Answer = (401, {})
CASES = {
    "babysitter ready": Case(True, ["sitter /health"], {"/health": HERE}, {"/health": LOADING}),
    "babysitter not ready": Case(
        False, ["sitter /health"], {"/health": LOADING}, {"/health": HERE}
    ),
    "babysitter redirects": Case(False, ["sitter /health"], {"/health": (302, {})}, {}),
    "no babysitter, engine well": Case(True, ["itself /health"], None, {"/health": HERE}),
    "no babysitter, engine loading": Case(
        False, ["itself /health"], None, {"/health": LOADING, "/v1/models": HERE}
    ),
    "no health call, models": Case(
        True, ["itself /health", "itself /v1/models"], None, {"/v1/models": HERE}
    ),
    "no health call, plain models": Case(
        True, ["itself /health", "itself /v1/models", "itself /models"], None, {"/models": HERE}
    ),
    "no health call, models need a key": Case(
        True, ["itself /health", "itself /v1/models"], None, {"/v1/models": KEY}
    ),
    "none of them": Case(
        False, ["itself /health", "itself /v1/models", "itself /models"], None, {}
    ),
    "nobody listens": Case(False, [], None, None),
}


@pytest.mark.parametrize("name", CASES)
def test_probes_go_where_the_contract_says(
    name: str, probing: Any, serving: Any, until: Any, engine: Any
) -> None:
    case = CASES[name]

    async def scenario() -> None:
        port, asked = free_port(), []
        async with AsyncExitStack() as stack:
            for who, answers, at in (
                ("sitter", case.sitter, port + 1),
                ("itself", case.itself, port),
            ):
                if answers is not None:
                    server = await stack.enter_async_context(serving(answers, at))
                    asked.append((who, server))
            probed = await stack.enter_async_context(
                probing(engine("a", port), health_interval=60.0)
            )
            await until(lambda: probed.prober.view("a").last_check)
            assert probed.down == (set() if case.up else {"a"})
            assert [f"{who} {path}" for who, server in asked for path in server.paths] == case.asked

    asyncio.run(scenario())


def test_metadata_names_another_probe_which_is_the_only_one(
    probing: Any, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        port = free_port()
        async with (
            serving({"/ready": LOADING}) as other,
            serving({"/health": HERE}, port) as itself,
        ):
            override = engine("a", port, metadata={"health_url": f"{other.url}/ready"})
            async with probing(override, engine_api_key="sk-canary") as probed:
                await until(lambda: probed.down == {"a"})
            assert itself.requests == []
            assert all("Authorization" not in request.headers for request in other.requests)

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["ftp://h/x", "nonsense", "http://\u2603.invalid./"])
def test_a_probe_address_that_is_none_takes_the_engine_out_and_nothing_else(
    url: str, probing: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        async with probing(engine("a", 1, metadata={"health_url": url})) as probed:
            await until(lambda: probed.down == {"a"})

    asyncio.run(scenario())


def test_an_engine_on_the_next_port_is_not_taken_for_a_babysitter(
    probing: Any, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        port = free_port()
        async with (
            serving({"/health": HERE}, port),
            serving({"/health": LOADING}, port + 1),
            probing(engine("a", port), engine("b", port + 1)) as probed,
        ):
            await until(lambda: probed.down == {"b"})
            await until(lambda: probed.prober.view("a").last_check)
            assert probed.changes == [("b", False)]

    asyncio.run(scenario())


def test_the_key_of_engines_goes_to_the_engine_and_not_to_its_babysitter(
    probing: Any, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        port = free_port()
        async with serving({"/health": HERE}, port) as itself:
            async with probing(engine("a", port), engine_api_key="sk-1"):
                await until(lambda: itself.requests)
            async with (
                serving({"/health": HERE}, port + 1) as sitter,
                probing(engine("a", port), engine_api_key="sk-1"),
            ):
                await until(lambda: sitter.requests)
        assert itself.requests[0].headers["Authorization"] == "Bearer sk-1"
        assert "Authorization" not in sitter.requests[0].headers

    asyncio.run(scenario())
