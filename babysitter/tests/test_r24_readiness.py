"""R24: "registered" means "answers for that model"."""

import json
import subprocess
import sys
import time

import pytest

from rig.processes import wait_until


def registered(registry, babysat) -> bool:
    return registry.status(babysat.engine_name) == "running"


def registrations(registry, babysat) -> list:
    """Every attempt to register the engine."""
    calls = registry.seen("POST", "/services")
    return [call for call in calls if call.body["name"] == babysat.engine_name]


@pytest.mark.parametrize(
    ("loads_for", "probe_interval"), [(0.0, 0.05), pytest.param(60.0, 1.0, marks=pytest.mark.slow)]
)
def test_r24_an_engine_that_loads_is_registered_as_soon_as_it_lists_its_model(
    babysit, registry, loads_for: float, probe_interval: float
) -> None:
    babysat = babysit(
        registry_url=registry.url,
        switches={"loading": ""},
        babysitter={"probe_interval": probe_interval},
    )
    wait_until(lambda: len(babysat.journal("refused")) >= 10, 30, what="ten looks")
    status, health = babysat.get("/health")
    assert (status, health["state"]) == (503, "starting")
    assert health["detail"] == "/v1/models answers 503"
    assert health["last_log_line"] == "engine says hello"
    time.sleep(loads_for)  # nothing is registered for so long
    looks = len(babysat.journal("refused"))
    early = registrations(registry, babysat)
    babysat.switch("loading", on=False)
    ready_at = time.monotonic()
    wait_until(lambda: registered(registry, babysat), what="registration")
    took = registrations(registry, babysat)[0].time - ready_at
    print(f"R24 {len(early)} early registrations in {looks} looks, then registered in {took:.2f} s")
    assert early == []
    assert took <= 2.0
    assert babysat.get("/health")[0] == 200
    assert babysat.get("/models")[1]["data"][0]["id"] == "m"


def test_r24_an_engine_that_never_gets_ready_is_ended_with_all_its_processes(
    babysit, registry
) -> None:
    babysat = babysit(
        registry_url=registry.url,
        engine=("--worker",),
        switches={"loading": ""},
        babysitter={"start_timeout": 1.0, "stop_timeout": 0.2},
    )
    wait_until((babysat.folder / "forked").exists, what="worker")
    tree = [process.pid for process in babysat.tree()]
    assert len(tree) == 4, "keeper, engine, worker and its child"
    babysat.switch("old_tree", text=json.dumps(tree))
    wait_until(lambda: len(babysat.journal("start")) >= 2, what="second start")
    assert "not ready after 1 s: /v1/models answers 503" in babysat.program.output
    assert babysat.journal("start")[1]["old_alive"] == []
    assert registrations(registry, babysat) == []


def test_r24_a_change_of_the_models_is_known_by_the_next_look(babysit, registry) -> None:
    babysat = babysit(registry_url=registry.url, babysitter={"heartbeat_interval": 3600})
    wait_until(lambda: registered(registry, babysat), what="registration")
    babysat.serve("m", "lora")
    changed = time.monotonic()
    both = ["m", "lora"]
    wait_until(
        lambda: registry.services[babysat.engine_name]["metadata"]["models"] == both, what="told"
    )
    print(
        f"R24 a change of models is registered {time.monotonic() - changed:.2f} s later"
        " (models_interval 0.1 s; default 10 s)"
    )
    wait_until(lambda: len(babysat.get("/models")[1]["data"]) == 2, what="shown")


def test_models_are_taken_from_the_path_without_v1_if_the_other_is_missing(
    babysit, registry
) -> None:
    babysat = babysit(registry_url=registry.url, switches={"loading": ""})
    babysat.serve("old-style", path="/models")
    babysat.switch("loading", on=False)
    wait_until(lambda: registered(registry, babysat))
    assert registry.services[babysat.engine_name]["metadata"]["models"] == ["old-style"]


@pytest.mark.parametrize("path", ["/nowhere", "/v1/models"])
def test_an_engine_without_a_models_list_serves_the_configured_models(
    babysit, registry, path: str
) -> None:
    babysat = babysit(registry_url=registry.url, models=["a", "b"], switches={"loading": ""})
    babysat.serve(path=path)  # no list at all, or an empty one
    wait_until(lambda: babysat.journal("refused"), what="first look")
    assert babysat.engine_name not in registry.services, "loading is not lacking a list"
    babysat.switch("loading", on=False)
    wait_until(lambda: registered(registry, babysat))
    assert registry.services[babysat.engine_name]["metadata"]["models"] == ["a", "b"]


def test_an_engine_without_a_models_list_and_without_configured_ones_says_what_to_do(
    babysit,
) -> None:
    babysat = babysit(switches={"loading": ""})
    babysat.serve(path="/nowhere")
    babysat.switch("loading", on=False)
    babysat.program.wait_for_line("lists no models .*/v1/models: 404.* set models")
    assert babysat.state() == "starting"


def test_the_models_list_is_asked_for_with_the_configured_key(babysit, tmp_path) -> None:
    key = tmp_path / "key"
    key.write_text("canary-key\n")
    babysat = babysit(engine=("--api-key", "canary-key"), api_key_file=str(key))
    babysat.wait_for_state("ready")
    shown = babysat.program.output + str(babysat.get("/info")) + str(babysat.get("/health"))
    assert "canary-key" not in shown


def test_a_protected_models_list_without_a_key_says_what_to_do(babysit) -> None:
    babysat = babysit(engine=("--api-key", "k"))
    babysat.program.wait_for_line("lists no models .*401.*set api_key_file")


def test_an_infinilm_server_whose_core_died_is_restarted(babysit, fake_engine, tmp_path) -> None:
    backend = {
        "type": "infinilm",
        "model_path": "/m",
        "python": sys.executable,
        "script": str(fake_engine),
        "generation": "inference_server_current",
        "args": ["--folder", str(tmp_path / "engine")],
    }
    babysat = babysit(backend=backend, babysitter={"unhealthy_after": 0.3})
    babysat.wait_for_state("ready")
    babysat.switch("dead")
    babysat.program.wait_for_line("engine is ended reason='broken for 0.3 s: /health answers 503'")
    babysat.switch("dead", on=False)
    wait_until(lambda: len(babysat.journal("start")) == 2, what="second start")
    babysat.wait_for_state("ready")


def test_a_busy_engine_is_left_alone(babysit) -> None:
    babysat = babysit(babysitter={"unhealthy_after": 0})
    babysat.wait_for_state("ready")
    babysat.switch("loading")  # 503 to everything: overload, not death
    wait_until(lambda: len(babysat.journal("refused")) >= 5, what="five looks")
    assert babysat.state() == "ready"
    assert len(babysat.journal("start")) == 1


@pytest.fixture
def without_ipv6_loopback() -> tuple[str, ...]:
    """A prefix for commands: the network of a container, as Docker makes it."""
    allowed = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip("no network namespaces here")
    off = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
    return ("unshare", "-rn", "sh", "-c", f'ip link set lo up && {off} && exec "$@"', "sh")


def test_an_engine_on_every_address_is_reached_where_ipv6_has_no_loopback(
    babysit, without_ipv6_loopback
) -> None:
    babysat = babysit(engine=("--host", "::"), prefix=without_ipv6_loopback)
    babysat.program.wait_for_line("engine state=ready")


def test_an_engine_on_every_address_is_reached_where_ipv6_has_one(babysit) -> None:
    babysat = babysit(engine=("--host", "::"))
    babysat.wait_for_state("ready")
