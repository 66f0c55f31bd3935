import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from infinilm_router.config import RouterConfig
from infinilm_router.models.learner import ModelLearner
from infinilm_router.registry.client import RegistryClient
from infinilm_router.registry.saved import SavedList
from infinilm_router.registry.sync import RegistrySync
from infinilm_router.router.table import TableStore
from rig.fake_registry import FakeRegistry, registration
from rig.processes import free_port


class System:
    """A registry, a table, and the sync between them."""

    def __init__(self, http: Any, config: RouterConfig, registry: FakeRegistry) -> None:
        self.registry = registry
        self.store = TableStore()
        self.learner = ModelLearner(config, http, self.store)
        client = RegistryClient(http, config.registry_urls or [registry.url])
        self.sync = RegistrySync(config, client, self.store, learner=self.learner)

    @property
    def names(self) -> list[str]:
        return [service.name for service in self.store.current.services]

    def status(self, name: str) -> str:
        return next(s.status for s in self.store.current.services if s.name == name)


Start = Callable[..., Any]


@pytest.fixture
def system(session: Any, config: Any, running: Any) -> Start:
    @asynccontextmanager
    async def start(*entries: Any, **changes: Any) -> AsyncIterator[System]:
        registry = FakeRegistry()
        await registry.start()
        await registry.publish(entries)
        try:
            async with session() as http:
                parts = System(http, config(**changes), registry)
                async with running(parts.sync.run()):
                    yield parts
        finally:
            await registry.close()

    return start


def test_a_new_engine_does_not_wait_for_the_next_poll(system: Start, until: Any) -> None:
    async def scenario() -> None:
        async with system(registry_sync_interval=60.0) as parts:
            await until(lambda: parts.store.current.known)
            await until(lambda: any("since=" in r for r in parts.registry.requests))
            polls = parts.registry.requests.count("/services?healthy=true")
            await parts.registry.publish([registration("a", 8100)])
            await until(lambda: parts.names == ["a"])
            assert parts.registry.requests.count("/services?healthy=true") == polls

    asyncio.run(scenario())


def test_beside_the_watch_the_list_is_polled(system: Start, until: Any) -> None:
    async def scenario() -> None:
        async with system(registry_sync_interval=0.05) as parts:
            await until(lambda: parts.registry.requests.count("/services?healthy=true") >= 4)
            assert sum("since=" in r for r in parts.registry.requests) >= 2

    asyncio.run(scenario())


def test_a_registry_without_watch_is_polled(system: Start, serving: Any, until: Any) -> None:
    async def scenario() -> None:
        entries = [registration("a", 8100)]
        async with (
            serving({"/services": lambda: (200, {"services": entries})}) as old,
            system(registry_urls=(old.url,), registry_sync_interval=0.02) as parts,
        ):
            await until(lambda: parts.names == ["a"])
            entries.append(registration("b", 8200))
            await until(lambda: parts.names == ["a", "b"])
            assert set(old.paths) == {"/services?healthy=true"}

    asyncio.run(scenario())


def test_a_registry_that_ignores_waiting_is_not_asked_without_pause(
    system: Start, serving: Any, until: Any
) -> None:
    async def scenario() -> None:
        started = asyncio.get_running_loop().time()
        async with (
            serving({"/services": (200, {"services": [], "revision": 3})}) as hasty,
            system(registry_urls=(hasty.url,), registry_sync_interval=0.2),
        ):
            await until(lambda: len(hasty.requests) >= 6)
            assert asyncio.get_running_loop().time() - started > 0.3

    asyncio.run(scenario())


def test_an_engine_gone_from_the_registry_is_kept_for_grace_and_then_removed(
    system: Start, until: Any
) -> None:
    async def scenario() -> None:
        entries = [registration(name, 8100) for name in "ab"]
        async with system(*entries, service_removal_grace_period=0.3) as parts:
            await until(lambda: parts.names == ["a", "b"])
            started = asyncio.get_running_loop().time()
            await parts.registry.publish(entries[:1])
            await until(lambda: parts.names == ["a"])
            assert asyncio.get_running_loop().time() - started >= 0.3

    asyncio.run(scenario())


def test_a_registry_that_comes_back_empty_takes_no_engine_along(system: Start, until: Any) -> None:
    async def scenario() -> None:
        entries = [registration(name, 8100) for name in "ab"]
        async with system(*entries, service_removal_grace_period=0.0) as parts:
            await until(lambda: parts.names == ["a", "b"])
            await parts.registry.down()
            await parts.registry.publish([])
            await parts.registry.up()
            count = len(parts.registry.requests)
            await until(lambda: parts.registry.requests[count:].count("/services") >= 3)
            assert parts.names == ["a", "b"]
            parts.store.set_down("b", down=True)
            await until(lambda: parts.names == ["a"])

    asyncio.run(scenario())


def test_a_draining_engine_is_taken_out_at_once_and_stays_named(system: Start, until: Any) -> None:
    async def scenario() -> None:
        entries = [registration(name, 8100, models=[name]) for name in "ab"]
        async with system(*entries, registry_sync_interval=60.0) as parts:
            await until(lambda: parts.names == ["a", "b"])
            draining = {**entries[1], "status": "draining", "is_healthy": False}
            await parts.registry.publish([entries[0], draining])
            await until(lambda: parts.status("b") == "draining")
            table = parts.store.current
            assert table.candidates("b").up == ()
            assert "b" in table.by_model

    asyncio.run(scenario())


def test_static_services_always_stay_and_win_over_registered_ones_of_the_same_name(
    system: Start, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        fixed = engine("fixed", 9100, source="static")
        async with system(registration("fixed", 8100), static_services=(fixed,)) as parts:
            await until(lambda: parts.store.current.known)
            assert parts.store.current.services == (fixed,)
            await parts.registry.publish([registration("a", 8200)])
            await until(lambda: parts.names == ["fixed", "a"])

    asyncio.run(scenario())


def test_before_the_first_answer_nothing_is_known_and_statics_serve(
    system: Start, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        dead = f"http://127.0.0.1:{free_port()}"
        fixed = engine("fixed", 9100, source="static")
        async with system(registry_urls=(dead,), static_services=(fixed,)) as parts:
            await until(lambda: parts.names == ["fixed"])
            assert not parts.store.current.known

    asyncio.run(scenario())


def test_an_unreachable_registry_changes_nothing_and_is_logged_once(
    system: Start, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with system(registration("a", 8100), registry_sync_interval=0.02) as parts:
            await until(lambda: parts.names == ["a"])
            before = parts.store.current
            await parts.registry.misbehave(status=500)
            count = len(parts.registry.requests)
            await until(lambda: len(parts.registry.requests) > count + 4)
            assert parts.store.current is before
            await parts.registry.misbehave(status=200)
            await parts.registry.publish([registration(name, 8100) for name in "ab"])
            await until(lambda: parts.names == ["a", "b"])

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    texts = [record.getMessage() for record in caplog.records]
    assert sum("registry unreachable" in text for text in texts) == 1
    assert sum("registry answers again" in text for text in texts) == 1


def test_a_router_started_without_registry_serves_from_the_last_list(
    system: Start, until: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        entry = registration("a", 8100, models=["m"], max_concurrency=3)
        saved = SavedList(tmp_path, 8080)
        async with system(entry, state_dir=tmp_path) as parts:
            await until(lambda: parts.names == ["a"])
            await until(saved.path.exists)
        dead = f"http://127.0.0.1:{free_port()}"
        async with system(registry_urls=(dead,), state_dir=tmp_path) as later:
            await until(lambda: later.names == ["a"], timeout=2.0)
        table = later.store.current
        assert table.known
        assert table.candidates("m").up[0].metadata["max_concurrency"] == 3

    asyncio.run(scenario())


def test_a_silent_registry_does_not_hold_the_last_list_back(
    system: Start, until: Any, silent: Any, tmp_path: Path, engine: Any
) -> None:
    async def scenario() -> None:
        SavedList(tmp_path, 8080).save([engine("a")])
        async with silent() as url, system(registry_urls=(url,), state_dir=tmp_path) as parts:
            await until(lambda: parts.names == ["a"], timeout=2.0)

    asyncio.run(scenario())


def test_a_registry_that_started_together_with_the_router_does_not_empty_the_last_list(
    system: Start, until: Any, tmp_path: Path, engine: Any
) -> None:
    async def scenario() -> None:
        SavedList(tmp_path, 8080).save([engine("a"), engine("b")])
        changes = {"state_dir": tmp_path, "service_removal_grace_period": 0.0}
        async with system(**changes) as parts:
            await until(lambda: parts.registry.requests.count("/services") >= 3)
            assert parts.names == ["a", "b"]
            await parts.registry.publish([registration("b", 9000)])
            parts.store.set_down("a", down=True)
            await until(lambda: parts.names == ["b"])
            saved = SavedList(tmp_path, 8080)
            await until(lambda: [service.name for service in saved.load()] == ["b"])

    asyncio.run(scenario())


def test_a_first_answer_with_engines_counts_more_than_the_last_list(
    system: Start, until: Any, tmp_path: Path, engine: Any
) -> None:
    async def scenario() -> None:
        SavedList(tmp_path, 8080).save([engine("old")])
        async with system(registration("new", 8100), state_dir=tmp_path) as parts:
            await until(lambda: parts.store.current.known)
            assert parts.names == ["new"]

    asyncio.run(scenario())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"services": 3}', '{"services": [{}]}'])
def test_a_damaged_last_list_is_reported_and_ignored(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved = SavedList(tmp_path, 8080)
    saved.path.write_text(content)
    assert saved.load() == ()
    assert str(saved.path) in caplog.text


def test_the_last_list_replaces_the_file_in_one_step_and_only_on_change(
    tmp_path: Path, engine: Any
) -> None:
    saved = SavedList(tmp_path / "new", 8080)
    saved.save([engine("a")])
    first = saved.path.stat().st_ino
    saved.save([engine("a")])
    assert saved.path.stat().st_ino == first
    saved.save([engine("a"), engine("b")])
    assert [path.name for path in saved.path.parent.iterdir()] == [saved.path.name]
    assert len(json.loads(saved.path.read_text())["services"]) == 2
    assert [service.name for service in saved.load()] == ["a", "b"]


def test_a_folder_that_cannot_be_written_costs_only_the_saved_list(
    tmp_path: Path, engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    SavedList(tmp_path / "file", 8080).save([engine("a")])
    assert "list not saved" in caplog.text


def test_models_learned_from_an_engine_survive_the_next_sync(
    system: Start, until: Any, serving: Any, running: Any
) -> None:
    async def scenario() -> None:
        listing = {"data": [{"id": "found"}]}
        async with serving({"/v1/models": (200, listing)}) as server:
            entry = registration("a", server.port, models=None)
            async with system(entry) as parts, running(parts.learner.run()):
                await until(lambda: parts.store.current.candidates("found").up)
                other = registration("b", server.port, models=["n"])
                await parts.registry.publish([entry, other])
                await until(lambda: parts.names == ["a", "b"])
                assert parts.store.current.candidates("found").up
                declared = registration("a", server.port, models=["declared"])
                await parts.registry.publish([declared, other])
                await until(lambda: parts.store.current.candidates("declared").up)
                assert not parts.store.current.candidates("found").up

    asyncio.run(scenario())


def test_a_list_that_could_not_be_saved_is_saved_when_there_is_room(
    tmp_path: Path, engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "state"
    folder.write_text("a file is in the way")
    saved = SavedList(folder, 8080)
    for _ in range(2):
        saved.save([engine("a")])
    assert [record.message.split(" file=")[0] for record in caplog.records] == ["list not saved"]
    folder.unlink()
    saved.save([engine("a")])
    assert [service.name for service in saved.load()] == ["a"]
    assert [path.name for path in folder.iterdir()] == [saved.path.name]
