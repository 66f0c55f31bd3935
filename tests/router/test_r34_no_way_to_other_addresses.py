"""R34: a registered address is a real engine address, and leads nowhere else.

What the registry takes as an address is for its own tests; here an engine, a probe and a registry
answer with redirects, and the environment names proxies.
"""

import pytest

from rig.fake_engine import FakeEngine
from rig.fake_registry import FakeRegistry, registration
from rig.farm import Farm
from rig.flows import closed_loop, static
from rig.load_client import chat_call, kinds
from rig.processes import wait_until
from rig.raw_client import ask
from rig.routers import StartRouter

REDIRECTS = (301, 302, 303, 307, 308)
PROXY_VARIABLES = (
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
)


@pytest.fixture
def canary(fakes: Farm) -> FakeEngine:
    """Must never be asked anything, though it would gladly answer."""
    return fakes.engine("canary", models=["m", "planted"])


def redirecting(fakes: Farm, canary: FakeEngine, path: str) -> FakeRegistry:
    """A server that sends everybody to the canary, whatever is asked."""
    server = fakes.registry()
    target = f"http://127.0.0.1:{canary.port}{path}"
    raw = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
    fakes.call(server.misbehave(raw=raw))
    return server


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_engines_redirect_is_passed_on_and_not_followed(
    start: StartRouter, fakes: Farm, engine: FakeEngine, canary: FakeEngine, method: str
) -> None:
    router = start(static(engine))
    location = f"http://127.0.0.1:{canary.port}/v1/chat/completions"
    for status in REDIRECTS:
        headers = [["Location", location]]
        fakes.apply(engine, script={"status": status, "headers": headers, "body": "elsewhere"})
        body = b'{"model":"m"}' if method == "POST" else b""
        answer = ask(router.url, method, "/v1/chat/completions", body=body)
        assert (answer.status, answer.get("location")) == (status, location)
        assert answer.body == b"elsewhere"
    print(
        f"R34 {router.name}: {len(REDIRECTS)} redirects passed on, canary {accepted(canary)} hits"
    )
    assert accepted(canary) == 0


def accepted(canary: FakeEngine) -> int:
    """Connections that the canary has seen, on both of its ports."""
    return canary.server.accepted + canary.sidecar.accepted


def test_redirected_probes_model_lists_and_registries_and_proxies_of_the_environment_lead_nowhere(
    start: StartRouter, fakes: Farm, engine: FakeEngine, canary: FakeEngine
) -> None:
    registry = redirecting(fakes, canary, "/services")
    liar = redirecting(fakes, canary, "/v1/models")
    nameless = {"name": "liar", "host": "127.0.0.1", "port": liar.port}
    proxies = dict.fromkeys(PROXY_VARIABLES, f"http://127.0.0.1:{canary.port}")
    router = start(
        [*static(engine), nameless],
        flags={"registry-url": registry.url},
        env={**proxies, "NO_PROXY": "", "no_proxy": ""},
        healthy="1/2",
    )
    seen = len(liar.requests)
    wait_until(lambda: len(registry.requests) >= 3, 10, "three polls of the registry")
    wait_until(lambda: len(liar.requests) >= seen + 2, 10, "two more probes")
    outcomes = closed_loop(router.url, [chat_call()] * 20, 4)
    assert kinds(outcomes) == {"ok": 20}
    # The registry comes to its senses: it was really asked, and not through a proxy.
    fakes.call(registry.misbehave())
    fakes.call(registry.publish([registration("late", engine.port)]))
    router.wait_healthy("2/3")
    models = [model["id"] for model in router.get("/v1/models")["data"]]
    print(f"R34 {router.name}: canary {accepted(canary)} hits, models {models}")
    assert models == ["m"]
    assert accepted(canary) == 0
