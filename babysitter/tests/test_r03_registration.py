"""R3: a running engine is always found again, and is described in full."""

import asyncio
import re

from infinilm_babysitter.config import check_config
from infinilm_babysitter.registration import Registrar
from infinilm_babysitter.registry_client import Answer, RegistryClient
from rig.processes import free_port, wait_until


def both_running(registry, babysat) -> bool:
    names = (babysat.name, babysat.engine_name)
    return all(registry.status(name) == "running" for name in names)


def test_both_services_are_registered_as_the_contract_says(babysit, registry) -> None:
    babysat = babysit(
        registry_url=registry.url, weight=3, max_concurrency=7, metadata={"cache_type": "paged"}
    )
    wait_until(lambda: both_running(registry, babysat))
    own = registry.services[babysat.name]
    engine = registry.services[babysat.engine_name]
    assert (own["port"], own["metadata"]["type"]) == (babysat.port + 1, "command")
    assert (own["url"], own["host"]) == (f"http://127.0.0.1:{babysat.port + 1}", "127.0.0.1")
    assert (engine["port"], engine["hostname"], engine["weight"]) == (babysat.port, "127.0.0.1", 3)
    assert engine["heartbeat_interval"] == 0.2
    assert engine["instance_id"] == own["instance_id"]
    metadata = engine["metadata"]
    assert metadata["type"] == "openai-api"
    assert metadata["parent_service"] == babysat.name
    assert metadata["babysitter"] == "enhanced"
    assert metadata["models"] == ["m"]
    assert [each["owned_by"] for each in metadata["models_list"]] == ["test"]
    assert (metadata["cache_type"], metadata["max_concurrency"]) == ("paged", 7)


def test_r03_a_registry_that_forgot_everything_is_told_again_in_full(babysit, registry) -> None:
    babysat = babysit(registry_url=registry.url)
    for _ in range(3):
        wait_until(lambda: both_running(registry, babysat), what="both registered")
        full = dict(registry.services[babysat.engine_name])
        registry.services.clear()
        wait_until(lambda: both_running(registry, babysat), what="both registered again")
        assert registry.services[babysat.engine_name] == full


def test_r03_a_registry_that_comes_late_or_returns_is_found(babysit, registry) -> None:
    port = free_port()
    babysat = babysit(registry_url=f"http://127.0.0.1:{port}")
    babysat.wait_for_state("ready")
    assert "Cannot connect" in babysat.get("/info")[1]["registry_problem"]
    for _ in range(2):
        late = type(registry)(port)
        try:
            wait_until(lambda late=late: both_running(late, babysat), what="registered")
        finally:
            late.close()
    assert babysat.state() == "ready", "a registry that is away changes nothing for the engine"
    assert len(babysat.journal("start")) == 1


def test_r03_the_next_registry_takes_over_when_one_dies(babysit, registry) -> None:
    second = type(registry)()
    try:
        babysat = babysit(registry_url=f"{registry.url},{second.url}")
        wait_until(lambda: both_running(registry, babysat))
        assert second.calls == []
        registry.close()
        wait_until(lambda: both_running(second, babysat), what="registered at the second")
    finally:
        second.close()


def test_heartbeats_keep_coming_and_carry_status_and_instance(babysit, registry) -> None:
    babysat = babysit(registry_url=registry.url)
    path = f"/services/{babysat.engine_name}/heartbeat"
    wait_until(lambda: len(registry.seen("POST", path)) >= 5, what="five heartbeats")
    instance = registry.services[babysat.engine_name]["instance_id"]
    for beat in registry.seen("POST", path):
        assert beat.body == {"status": "running", "instance_id": instance}
    assert len(registry.seen("POST", "/services")) == 2, (
        "a heartbeat that is answered is no reason to register again"
    )


def test_the_interval_that_the_registry_asks_for_is_kept(babysit, registry, monkeypatch) -> None:
    answer = registry.answer
    asking = {"heartbeat_interval": 0.05}
    monkeypatch.setattr(
        registry, "answer", lambda *call: (answer(*call)[0], {**answer(*call)[1], **asking})
    )
    babysat = babysit(registry_url=registry.url, babysitter={"heartbeat_interval": 3600})
    path = f"/services/{babysat.engine_name}/heartbeat"
    wait_until(lambda: len(registry.seen("POST", path)) >= 5, what="five heartbeats")


def test_a_change_of_the_models_list_reaches_the_registry(babysit, registry) -> None:
    babysat = babysit(registry_url=registry.url)
    wait_until(lambda: both_running(registry, babysat))
    babysat.serve("m", "lora")
    wait_until(
        lambda: registry.services[babysat.engine_name]["metadata"]["models"] == ["m", "lora"]
    )
    puts = registry.seen("PUT", f"/services/{babysat.engine_name}")
    assert len(puts) == 1, "`created` changes with every answer and is no change of the list"


def test_stopping_removes_both_services(babysit, registry) -> None:
    babysat = babysit(registry_url=registry.url)
    wait_until(lambda: both_running(registry, babysat))
    assert babysat.program.stop() == 0
    assert registry.services == {}


def test_stopping_without_a_registry_does_not_say_that_one_was_reached(babysit) -> None:
    babysat = babysit(registry_url=f"http://127.0.0.1:{free_port()}")
    babysat.wait_for_state("ready")
    babysat.program.wait_for_line("registry not up to date")
    assert babysat.program.stop() == 0
    assert "up to date again" not in babysat.program.output


def test_a_refused_registration_is_told_and_the_engine_goes_on(
    babysit, registry, monkeypatch
) -> None:
    monkeypatch.setattr(registry, "answer", lambda *_: (403, {"error": "token required"}))
    babysat = babysit(registry_url=registry.url)
    babysat.wait_for_state("ready")
    assert "token required" in babysat.get("/info")[1]["registry_problem"]


def test_neither_redirects_nor_proxies_are_used(babysit, registry, router, monkeypatch) -> None:
    monkeypatch.setattr(registry, "answer", lambda *_: (307, {"error": "elsewhere"}))
    babysat = babysit(registry_url=registry.url, env={"http_proxy": router.url})
    babysat.wait_for_state("ready")
    wait_until(lambda: re.search("refused", babysat.program.output))
    assert router.calls == []


def test_a_refused_engine_does_not_keep_the_babysitter_from_its_registration(
    babysit, registry, monkeypatch
) -> None:
    answer = registry.answer

    def refuse_engine(method: str, path: str, body: dict) -> tuple[int, object]:
        if body.get("name", "").endswith("-server"):
            return 400, {"error": "metadata too large"}
        return answer(method, path, body)

    monkeypatch.setattr(registry, "answer", refuse_engine)
    babysat = babysit(registry_url=registry.url)
    babysat.program.wait_for_line("registration of test-server refused: metadata too large")
    beat = f"/services/{babysat.name}/heartbeat"
    wait_until(lambda: len(registry.seen("POST", beat)) >= 2, what="own heartbeats")


class Unforeseen(RegistryClient):
    """Raises what nobody has thought of, `times` times; then all is well."""

    def __init__(self, times: int) -> None:
        self._urls = ["http://registry"]
        self._times = times
        self.well = asyncio.Event()

    async def call(self, *_: object, **__: object) -> Answer:
        if self._times:
            self._times -= 1
            raise RuntimeError("boom")
        self.well.set()
        return Answer(200, {})


def test_r03_no_fault_of_ours_ends_the_registration() -> None:
    raw = {"port": 1, "backend": {"type": "mock", "models": ["m"]}}
    config = check_config({**raw, "babysitter": {"heartbeat_interval": 0.05}}, file="test")

    async def story() -> None:
        client = Unforeseen(times=2)
        registrar = Registrar(config, client, "life")
        registrar.start()
        await registrar.flush(5)
        assert "boom" in registrar.problem
        async with asyncio.timeout(5):
            await client.well.wait()
        await registrar.close(5)

    asyncio.run(story())
