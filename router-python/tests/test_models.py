import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from infinilm_router.models import learner as learning
from infinilm_router.models.catalog import ModelCatalog
from infinilm_router.models.learner import ModelLearner, listed_models
from infinilm_router.router.table import TableStore
from rig.processes import free_port

Start = Callable[..., Any]


def listed(store: TableStore) -> list[dict[str, Any]]:
    content = json.loads(ModelCatalog(store).list())
    assert content["object"] == "list"
    data: list[dict[str, Any]] = content["data"]
    return data


def test_the_list_is_the_union_over_healthy_engines_and_the_first_object_wins(engine: Any) -> None:
    store = TableStore()
    first = {"id": "m", "object": "model", "created": 1, "owned_by": "a", "max_model_len": 9}
    store.set_services(
        [
            engine("down", models=("gone",)),
            engine("a", models=("m", "plain"), models_list=(first,)),
            engine("b", models=("m", "n"), models_list=({"id": "m", "owned_by": "b"},)),
            engine("drain", models=("draining",), status="draining"),
        ]
    )
    store.set_down("down", down=True)
    assert listed(store) == [
        first,
        {"id": "plain", "object": "model", "created": 0, "owned_by": "infinilm"},
        {"id": "n", "object": "model", "created": 0, "owned_by": "infinilm"},
    ]


@pytest.mark.parametrize(
    ("created", "shown"), [(1.9, 1), (None, 0), ("x", 0), (True, 0), (1e300, int(1e300))]
)
def test_created_is_always_a_whole_number(engine: Any, created: Any, shown: int) -> None:
    store = TableStore()
    model = {"id": "m", "created": created, "owned_by": 7, "meta": {"n": 1}}
    store.set_services([engine("a", models=("m",), models_list=(model,))])
    assert listed(store) == [
        {"id": "m", "object": "model", "created": shown, "owned_by": "infinilm", "meta": {"n": 1}}
    ]


def test_one_model_is_found_by_its_id_and_the_list_follows_the_table(engine: Any) -> None:
    store = TableStore()
    catalog = ModelCatalog(store)
    assert json.loads(catalog.list())["data"] == []
    store.set_services([engine("a", models=("org/name:tag@main",))])
    found = catalog.get("org/name:tag@main")
    assert found is not None
    assert json.loads(found)["id"] == "org/name:tag@main"
    assert catalog.list() is catalog.list()
    store.set_down("a", down=True)
    assert catalog.get("org/name:tag@main") is None


@pytest.mark.parametrize(
    ("status", "body", "ids"),
    [
        (200, b'{"data": [{"id": "a"}, {"id": "b/c"}, {"id": "a"}]}', ("a", "b/c")),
        (200, b'{"data": [{"id": ""}, {"id": 3}, 4, {"id": "x\\n"}]}', None),
        (200, b'{"data": []}', None),
        (200, b'{"data": {"id": "a"}}', None),
        (200, b"[]", None),
        (404, b'{"data": [{"id": "a"}]}', None),
    ],
)
def test_a_models_answer_counts_when_it_lists_any(
    status: int, body: bytes, ids: tuple[str, ...] | None
) -> None:
    found = listed_models(status, body)
    assert (found[0] if found else None) == ids


class Learning:
    def __init__(self, http: Any, config: Any, services: Any) -> None:
        self.store = TableStore()
        self.store.set_services(services)
        self.learner = ModelLearner(config, http, self.store)

    def models(self, name: str = "a") -> tuple[str, ...]:
        return next(s.models for s in self.store.current.services if s.name == name)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(learning, "LAST_RETRY", 0.02)


@pytest.fixture
def learn(session: Any, config: Any, running: Any) -> Start:
    @asynccontextmanager
    async def start(*services: Any, **changes: Any) -> AsyncIterator[Learning]:
        async with session() as http:
            parts = Learning(http, config(**changes), services)
            async with running(parts.learner.run()):
                yield parts

    return start


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_an_engine_without_models_is_asked_for_them_with_the_key(
    path: str, learn: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        listing = (200, {"data": [{"id": "m", "owned_by": "x", "extra": 1}]})
        async with (
            serving({path: listing}) as server,
            learn(engine("a", server.port), engine_api_key="sk-1") as parts,
        ):
            await until(lambda: parts.models() == ("m",))
            [service] = parts.store.current.services
            assert service.models_list[0]["extra"] == 1
            assert "m" in parts.store.current.named
        assert server.requests[0].headers["Authorization"] == "Bearer sk-1"

    asyncio.run(scenario())


@pytest.mark.usefixtures("quick")
def test_asking_is_repeated_until_the_engine_answers(
    learn: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        port = free_port()
        async with learn(engine("a", port)) as parts:
            await asyncio.wait_for(parts.learner.settled.wait(), 5)
            assert parts.models() == ()
            async with serving({"/v1/models": (503, {})}, port) as server:
                await until(lambda: len(server.requests) >= 4)
                server.answers["/v1/models"] = (200, {"data": [{"id": "m"}]})
                await until(lambda: parts.models() == ("m",))

    asyncio.run(scenario())


def test_an_engine_that_came_back_is_asked_again(
    learn: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        async with (
            serving({"/v1/models": (200, {"data": [{"id": "old"}]})}) as server,
            learn(engine("a", server.port)) as parts,
        ):
            await until(lambda: parts.models() == ("old",))
            server.answers["/v1/models"] = (200, {"data": [{"id": "new"}]})
            parts.store.set_down("a", down=True)
            await asyncio.sleep(0)
            parts.store.set_down("a", down=False)
            await until(lambda: parts.models() == ("new",))
            assert parts.store.current.named == {"old", "new"}

    asyncio.run(scenario())


def test_an_engine_that_was_down_from_the_start_is_asked_when_it_comes_up(
    learn: Start, serving: Any, until: Any, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "FIRST_RETRY", 60.0)

    async def scenario() -> None:
        port = free_port()
        async with learn(engine("a", port)) as parts:
            await asyncio.wait_for(parts.learner.settled.wait(), 5)
            parts.store.set_down("a", down=True)
            async with serving({"/models": (200, {"data": [{"id": "m"}]})}, port):
                await asyncio.sleep(0)
                parts.store.set_down("a", down=False)
                await until(lambda: parts.models() == ("m",))

    asyncio.run(scenario())


def test_engines_that_declare_their_models_are_not_asked(
    learn: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        async with serving({"/v1/models": (200, {"data": [{"id": "m"}]})}) as server:
            declared = engine("declared", server.port, models=("own",))
            async with learn(declared, engine("a", server.port)) as parts:
                await until(lambda: parts.models() == ("m",))
                assert parts.models("declared") == ("own",)
                assert server.paths == ["/v1/models"]

    asyncio.run(scenario())


def test_what_was_learned_belongs_to_the_address_and_yields_to_what_is_declared(
    learn: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        async with serving({"/v1/models": (200, {"data": [{"id": "m"}]})}) as server:
            bare = engine("a", server.port)
            async with learn(bare) as parts:
                await until(lambda: parts.models() == ("m",))
                assert parts.learner.fill(bare).models == ("m",)
                assert parts.learner.fill(engine("a", server.port + 2)).models == ()
                own = engine("a", server.port, models=("own",))
                assert parts.learner.fill(own).models == ("own",)
                assert parts.learner.fill(bare).models == ()

    asyncio.run(scenario())


def test_what_was_learned_of_an_engine_is_forgotten_when_it_has_gone(
    learn: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        listing = {"/v1/models": (200, {"data": [{"id": "m"}]})}
        async with serving(listing) as server, learn(engine("a", server.port)) as parts:
            await until(lambda: parts.models() == ("m",))
            parts.store.set_services([])
            await until(lambda: not parts.learner.fill(engine("a", server.port)).models)

    asyncio.run(scenario())


def test_without_engines_to_ask_it_is_settled_at_once(learn: Start) -> None:
    async def scenario() -> None:
        async with learn() as parts:
            await asyncio.wait_for(parts.learner.settled.wait(), 5)

    asyncio.run(scenario())
