import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from infinilm_router.config import RouterConfig
from infinilm_router.handlers import find_handler
from infinilm_router.handlers.context import Context, LocalAnswer
from infinilm_router.handlers.routes import ROUTES
from infinilm_router.models.catalog import ModelCatalog
from infinilm_router.proxy.heads import RequestHead
from infinilm_router.router.engine import Outcome
from infinilm_router.router.health import HealthProber, ProbeView
from infinilm_router.router.load import LoadBook
from infinilm_router.router.queue import WaitingRoom
from infinilm_router.router.table import TableStore
from infinilm_router.utils.errors import Code, RouterError
from infinilm_router.utils.metrics import Counters


class Router:
    """The state that the endpoints show, without anything running."""

    def __init__(self, config: RouterConfig) -> None:
        self.store = TableStore()
        self.store.set_services([], known=True)
        self.load = LoadBook(jitter=lambda: 0.5)
        self.draining = False
        self.checked: dict[str, float] = {}
        self.context = Context(
            config=config,
            store=self.store,
            load=self.load,
            room=WaitingRoom(self.store, self.load),
            catalog=ModelCatalog(self.store),
            prober=cast("HealthProber", SimpleNamespace(view=self.view)),
            counters=Counters(),
            connections=lambda: 3,
            draining=lambda: self.draining,
            started_at=0.0,
            clock=lambda: 100.0,
        )

    def view(self, name: str) -> ProbeView:
        return ProbeView(self.checked.get(name))

    def get(self, path: bytes) -> LocalAnswer:
        handler = find_handler(self.context)(path)
        assert handler is not None
        return handler(cast("RequestHead", SimpleNamespace(path=path)))

    def json(self, path: bytes) -> dict[str, Any]:
        answer = self.get(path)
        assert answer.content_type == b"application/json"
        content: dict[str, Any] = json.loads(answer.body)
        return content


@pytest.fixture
def router(config: Callable[..., RouterConfig]) -> Router:
    return Router(config(registry_urls=("http://a:1", "http://b:2")))


@pytest.fixture
def mixed(router: Router, engine: Any) -> Router:
    """Two engines up, one down, one draining, one babysitter."""
    sitter = replace(engine("sitter", 9001), metadata={"type": "InfiniLM"})
    router.store.set_services(
        [
            engine("a", 9000, models=("m",), weight=2.0, metadata={"models": ["m"]}),
            engine("b", 9002, models=("n",)),
            engine("sick", 9004, models=("sick-only",)),
            engine("drain", 9006, models=("m",), status="draining"),
            sitter,
        ]
    )
    router.store.set_down("sick", down=True)
    return router


def test_health_counts_engines_and_not_babysitters(mixed: Router) -> None:
    answer = mixed.get(b"/health")
    content = json.loads(answer.body)
    assert answer.status == 200
    assert datetime.fromisoformat(content.pop("timestamp")).tzinfo is not None
    assert content == {
        "status": "healthy",
        "router": "running",
        "healthy_services": "2/4",
        "registry_url": "http://a:1,http://b:2",
        "message": None,
    }


def test_status_says_running(mixed: Router) -> None:
    assert mixed.json(b"/status")["status"] == "running"


def test_health_stays_200_without_engines_and_says_so(router: Router) -> None:
    assert router.get(b"/health").status == 200
    content = router.json(b"/health")
    assert content["healthy_services"] == "0/0"
    assert content["message"] == "No healthy services available"


def test_a_router_without_registry_shows_null(config: Any) -> None:
    assert Router(config()).json(b"/health")["registry_url"] is None


@pytest.mark.parametrize("path", [b"/health", b"/status"])
def test_a_draining_router_is_not_ready(mixed: Router, path: bytes) -> None:
    mixed.draining = True
    answer = mixed.get(path)
    assert (answer.status, answer.headers) == (503, ((b"Retry-After", b"1"),))
    assert json.loads(answer.body)["status"] == "draining"
    assert mixed.json(b"/stats")["draining"] is True


def test_stats_show_what_traffic_did_to_each_service(mixed: Router) -> None:
    a, b = mixed.store.current.services[:2]
    running = mixed.load.begin(a, 0.0, 700)
    running.answered(200, None, stream=True, now=0.25)
    for _ in range(3):
        mixed.load.begin(b, 99.0).release(Outcome.ENGINE_FAULT, 99.0)
    mixed.checked["a"] = 1_700_000_000.0
    content = mixed.json(b"/stats")
    services = {service["name"]: service for service in content.pop("services")}
    assert content == {
        "total_services": 5,
        "healthy_services": 3,
        "registry_url": "http://a:1,http://b:2",
        "in_flight": 1,
        "requests": 0,
        "failures": {},
        "retries": 0,
        "queued": 0,
        "queues": [],
        "draining": False,
        "panic": True,  # sick-only is served by an engine that is down
        "started_at": "1970-01-01T00:00:00.000+00:00",
    }
    assert services["a"] == {
        "name": "a",
        "host": "127.0.0.1",
        "port": 9000,
        "url": "http://127.0.0.1:9000",
        "babysitter_url": "http://127.0.0.1:9001",
        "healthy": True,
        "status": "running",
        "down_reason": None,
        "source": "registry",
        "backup": False,
        "ejected": False,
        "busy": False,
        "warming": False,
        "in_flight": 1,
        "max_concurrency": 256,
        "prefill_requests": 1,
        "prefill_bytes": 700,
        "request_count": 1,
        "error_count": 0,
        "response_time": 0.25,
        "last_check": "2023-11-14T22:13:20.000+00:00",
        "weight": 2.0,
        "metadata": {"type": "openai-api", "models": ["m"]},
    }
    assert (services["b"]["error_count"], services["b"]["ejected"]) == (3, True)
    assert (services["sick"]["healthy"], services["drain"]["healthy"]) == (False, False)
    assert services["drain"]["status"] == "draining"
    assert services["b"]["last_check"] is None
    running.release(Outcome.OK, 1.0)
    assert mixed.json(b"/stats")["in_flight"] == 0


def test_services_are_listed_with_their_models(mixed: Router) -> None:
    content = mixed.json(b"/services")
    assert (content["total"], content["registry_url"]) == (5, "http://a:1,http://b:2")
    assert [(s["name"], s["models"]) for s in content["services"]] == [
        ("a", ["m"]),
        ("b", ["n"]),
        ("sick", ["sick-only"]),
        ("drain", ["m"]),
        ("sitter", []),
    ]


def test_both_models_paths_give_the_same_list(mixed: Router) -> None:
    assert [model["id"] for model in mixed.json(b"/models")["data"]] == ["m", "n"]
    assert mixed.get(b"/models") == mixed.get(b"/v1/models")


@pytest.mark.parametrize(
    "path",
    [b"/v1/models/org/x:q4@main", b"/v1/models/org%2Fx:q4@main", b"/v1/models/org%2fx%3Aq4@main"],
)
def test_a_model_is_found_with_slashes_plain_or_escaped(
    router: Router, engine: Any, path: bytes
) -> None:
    router.store.set_services([engine("a", models=("org/x:q4@main",))])
    assert router.json(path)["id"] == "org/x:q4@main"


def test_an_unescaped_id_is_unescaped_once_only(router: Router, engine: Any) -> None:
    router.store.set_services([engine("a", models=("a%2Fb",))])
    assert router.json(b"/v1/models/a%252Fb")["id"] == "a%2Fb"


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (b"absent", Code.MODEL_NOT_FOUND),
        (b"", Code.MODEL_NOT_FOUND),
        (b"%ff", Code.MODEL_NOT_FOUND),
        (b"sick-only", Code.NO_HEALTHY_ENGINE),
    ],
)
def test_a_model_that_nobody_serves_is_an_error_of_the_closed_set(
    mixed: Router, model: bytes, code: Code
) -> None:
    with pytest.raises(RouterError) as caught:
        mixed.get(b"/v1/models/" + model)
    assert caught.value.code is code


def test_before_the_first_registry_answer_no_model_is_called_absent(router: Router) -> None:
    router.store.set_services([], known=False)
    with pytest.raises(RouterError) as caught:
        router.get(b"/v1/models/any")
    assert caught.value.code is Code.NO_HEALTHY_ENGINE


def test_only_the_exact_paths_are_local(router: Router) -> None:
    find = find_handler(router.context)
    assert all(find(path) is not None for path in ROUTES)
    for path in (b"/", b"/Health", b"/health/", b"//health", b"/%68ealth", b"/v1", b"/models/x"):
        assert find(path) is None


def test_json_is_compact(mixed: Router) -> None:
    assert b'"name":"a",' in mixed.get(b"/services").body
