import asyncio
import json
import logging
from typing import Any

import pytest

from infinilm_router.registry.client import (
    NotModified,
    RegistryAnswer,
    RegistryClient,
    RegistryError,
)
from rig.fake_registry import FakeRegistry, registration
from rig.processes import free_port


def answer_of(result: RegistryAnswer | NotModified) -> RegistryAnswer:
    assert isinstance(result, RegistryAnswer)
    return result


def test_an_answer_becomes_services_with_models_weight_and_status(
    serving: Any, session: Any
) -> None:
    entry = {**registration("a", 8100, models=["m"]), "weight": 2.5, "hostname": "gpu"}

    async def scenario() -> None:
        content = {"services": [entry], "total": 1, "revision": 7}
        async with serving({"/services": (200, content)}) as server, session() as http:
            answer = answer_of(await RegistryClient(http, [server.url]).fetch())
            assert server.paths == ["/services?healthy=true"]
        [service] = answer.services
        assert answer.revision == 7
        assert (service.name, service.address, service.weight) == ("a", ("127.0.0.1", 8100), 2.5)
        assert (service.models, service.models_list[0]["owned_by"]) == (("m",), "a")
        assert (service.status, service.source, service.is_engine) == ("running", "registry", True)

    asyncio.run(scenario())


def test_a_registry_of_the_earlier_version_is_understood(serving: Any, session: Any) -> None:
    """No revision, no weight, metadata null."""
    entry = {"name": "a", "host": "h", "port": 1, "status": "running", "metadata": None}

    async def scenario() -> None:
        async with (
            serving({"/services": (200, {"services": [entry]})}) as server,
            session() as http,
        ):
            answer = answer_of(await RegistryClient(http, [server.url]).fetch())
        assert answer.revision is None
        assert (answer.services[0].weight, answer.services[0].models) == (1.0, ())

    asyncio.run(scenario())


def test_entries_that_cannot_be_used_are_skipped_and_logged_once(
    serving: Any, session: Any, caplog: pytest.LogCaptureFixture
) -> None:
    good = registration("good", 8100)
    bad: list[Any] = [
        7,
        {},
        {**good, "name": "x\r\ny"},
        {**good, "name": "p", "port": 65535},
        {**good, "name": "q", "port": True},
        {**good, "name": "h", "host": "http://h"},
        {**good, "name": "deep", "metadata": {"a": json.loads("[" * 100 + "]" * 100)}},
    ]
    odd = {**good, "name": "odd", "weight": -3, "status": 5, "metadata": [1]}
    huge = {**good, "name": "huge", "weight": 10**400}

    async def scenario() -> None:
        content = {"services": [*bad, odd, huge, good, {**good, "port": 9}]}
        async with serving({"/services": (200, content)}) as server, session() as http:
            client = RegistryClient(http, [server.url])
            await client.fetch()
            services = answer_of(await client.fetch()).services
        assert [(s.name, s.port, s.weight, s.status) for s in services] == [
            ("odd", 8100, 0.0, "running"),
            ("huge", 8100, 1.0, "running"),
            ("good", 8100, 1.0, "running"),
        ]

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert len(caplog.records) == len(bad)


def test_it_goes_to_the_next_registry_and_stays_there(serving: Any, session: Any) -> None:
    async def scenario() -> None:
        content = {"services": [], "revision": 1}
        async with (
            serving({"/services": (500, {})}) as broken,
            serving({"/services": (200, content)}) as works,
            session() as http,
        ):
            urls = [f"http://127.0.0.1:{free_port()}", broken.url, works.url]
            client = RegistryClient(http, urls)
            await client.fetch()
            await client.fetch()
            assert (len(broken.requests), len(works.requests)) == (1, 2)
            works.answers["/services"] = (503, {})
            broken.answers["/services"] = (200, content)
            await client.fetch()
            assert len(broken.requests) == 2

    asyncio.run(scenario())


def test_a_revision_is_shown_to_the_registry_that_gave_it_only(serving: Any, session: Any) -> None:
    async def scenario() -> None:
        content = {"services": [], "revision": 5}
        async with (
            serving({"/services": (200, content)}) as first,
            serving({"/services": (200, content)}) as second,
            session() as http,
        ):
            client = RegistryClient(http, [first.url, second.url])
            await client.fetch()
            first.answers["/services"] = (500, {})
            await client.fetch(since=5, wait=1.5)
        assert first.paths[1] == "/services?healthy=true&since=5&wait=1.5"
        assert second.paths == ["/services?healthy=true"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((302, {"services": []}), "answered 302"),
        ((304, b""), "answered 304"),
        ((200, b"<html>"), "not JSON"),
        ((200, b"[" * 100_000), "not JSON"),
        ((200, []), "no list of services"),
        ((200, {"services": {}}), "no list of services"),
    ],
)
def test_other_answers_are_failures_and_redirects_are_not_followed(
    serving: Any, session: Any, answer: Any, reason: str
) -> None:
    async def scenario() -> None:
        async with serving({"/services": answer}) as server, session() as http:
            with pytest.raises(RegistryError, match=reason):
                await RegistryClient(http, [server.url]).fetch()
            assert len(server.requests) == 1

    asyncio.run(scenario())


def test_a_watch_ends_with_the_change_or_unchanged(session: Any, until: Any) -> None:
    async def scenario() -> None:
        registry = FakeRegistry()
        await registry.start()
        try:
            async with session() as http:
                client = RegistryClient(http, [registry.url])
                first = answer_of(await client.fetch())
                unchanged = await client.fetch(since=first.revision, wait=0.01)
                assert isinstance(unchanged, NotModified)
                watch = asyncio.create_task(client.fetch(since=first.revision, wait=30.0))
                await until(lambda: len(registry.requests) == 3)
                await registry.publish([registration("a", 8100)])
                assert [s.name for s in answer_of(await watch).services] == ["a"]
        finally:
            await registry.close()

    asyncio.run(scenario())


def test_a_registry_that_does_not_answer_is_a_failure_after_the_time_limit(
    session: Any, silent: Any
) -> None:
    async def scenario() -> None:
        async with silent() as url, session() as http:
            with pytest.raises(RegistryError, match=r"no answer within 0\.05 s"):
                await RegistryClient(http, [url], timeout=0.05).fetch()

    asyncio.run(scenario())
