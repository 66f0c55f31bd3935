"""The whole system around llama.cpp's server: registry, babysitter, engine, routers."""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from openai import OpenAI

from rig.gguf_model import write_counting_model
from rig.processes import ROOT, Programs, free_port, programs, wait_until
from rig.routers import Router, router_names

MODEL = "local/tiny-count"
# Tokens of one slot: enough for a stream of several seconds on a fast machine.
SLOT_CONTEXT = 16384

BABYSITTER_TOML = """
name = "tiny"
host = "127.0.0.1"
port = {port}
registry_url = "{registry}"
log_dir = {log_dir}

[babysitter]
restart_delay = 0.1
backoff_max = 0.2
crash_exits = 100
heartbeat_interval = 1
probe_interval = 0.1
models_interval = 0.2
drain_settle = 0.1
drain_timeout = 2
stop_timeout = 5

[backend]
type = "command"
command = {python}
args = [{server}, "--model", {model_file}, "--alias", "{model}", "--host", "127.0.0.1",
        "--port", "{port}", "--context", "{context}", "--slots", "2", "--embeddings"]
"""


@dataclass(frozen=True)
class Engine:
    """llama.cpp's server under a babysitter; `url` is its own address, without `/v1`."""

    url: str
    registry: str
    model_file: Path

    def pid(self) -> int | None:
        """The engine's process, found by its command line; None while there is none."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self._is_ours(entry):
                return int(entry.name)
        return None

    def _is_ours(self, process: Path) -> bool:
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended while we looked
            return False
        server, model = b"llama_server.py", str(self.model_file).encode()
        return len(words) > 1 and words[1].endswith(server) and model in words

    def liveness(self) -> str:
        """What its babysitter, on the next port, thinks of it."""
        host, _, port = self.url.rpartition(":")
        health = requests.get(f"{host}:{int(port) + 1}/health", timeout=5).json()
        return str(health["liveness"])

    def busy_slots(self) -> int:
        """How many slots work on a request right now."""
        slots = requests.get(f"{self.url}/slots", timeout=5).json()
        return sum(bool(slot["is_processing"]) for slot in slots)


def _answers_chat(url: str) -> bool:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    try:
        return requests.post(f"{url}/v1/chat/completions", json=body, timeout=5).ok
    except requests.RequestException:
        return False


def wait_ready(url: str) -> None:
    """Return once the endpoint answers for the model."""
    wait_until(lambda: _answers_chat(url), 30, f"an answer from {url}")


def _start(run: Programs, folder: Path) -> Engine:
    registry = run.python(
        "registry/service_registry.py", *("--host", "127.0.0.1", "--port", "0", "--store", "memory")
    ).wait_listening()
    port, model_file = free_port(), write_counting_model(folder / "tiny.gguf")
    config = folder / "tiny.toml"
    config.write_text(
        BABYSITTER_TOML.format(
            port=port,
            registry=registry,
            log_dir=json.dumps(str(folder)),
            python=json.dumps(sys.executable),
            server=json.dumps(str(ROOT / "tests" / "rig" / "llama_server.py")),
            model_file=json.dumps(str(model_file)),
            model=MODEL,
            context=2 * SLOT_CONTEXT,
        )
    )
    run.python("babysitter/enhanced_babysitter.py", "--config-file", config)
    engine = Engine(f"http://127.0.0.1:{port}", registry, model_file)
    wait_ready(engine.url)
    return engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Registry, babysitter and engine, for all tests; stopped in order, nothing left."""
    with programs() as run:
        engine = _start(run, tmp_path_factory.mktemp("real_engine"))
        yield engine
        babysitter = run.started[-1]
        assert babysitter.stop() == 0, babysitter.output
        assert engine.pid() is None


@contextlib.contextmanager
def _routed(name: str, engine: Engine) -> Iterator[str]:
    """A router that knows the engine from the registry only."""
    with programs() as run:
        router = Router(run, name, {"registry-url": engine.registry, "state-dir": "none"})
        wait_ready(router.url)
        yield router.url
        assert router.program.stop() == 0, router.program.output


@pytest.fixture(scope="module", params=router_names())
def router(request: pytest.FixtureRequest, engine: Engine) -> Iterator[str]:
    """Each router in front of the engine."""
    with _routed(request.param, engine) as url:
        yield url


@pytest.fixture(scope="module", params=["direct", *router_names()])
def endpoint(request: pytest.FixtureRequest, engine: Engine) -> Iterator[str]:
    """The engine itself, and each router in front of it: the same must hold of both."""
    if request.param == "direct":
        yield engine.url
        return
    with _routed(request.param, engine) as url:
        yield url


@pytest.fixture
def client(endpoint: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{endpoint}/v1", api_key="unused", max_retries=0, timeout=30) as made:
        yield made


@pytest.fixture
def routed(router: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{router}/v1", api_key="unused", max_retries=0, timeout=30) as made:
        yield made
