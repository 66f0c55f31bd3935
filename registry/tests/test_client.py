"""RegistryClient and register_service.py against a real registry."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infinilm_registry.client import (
    RegistryClient,
    RegistryRefusedError,
    RegistryUnreachableError,
)
from infinilm_registry.register import main
from rig.processes import Programs, free_port

Body = Callable[..., dict[str, Any]]
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(run: Programs) -> Command:
    def call(
        *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> tuple[int, str]:
        program = run.python("registry/register_service.py", *arguments, cwd=cwd, env=env)
        code = program.wait()
        program._reader.join(5)
        return code, program.output

    return call


def test_the_client_has_a_method_for_every_call(shared: Any, body: Body) -> None:
    with RegistryClient(shared.url + "/") as client:
        generation = client.register(body("c", instance_id="i"))["generation"]
        assert client.service("c")["port"] == 1001
        assert "c" in {one["name"] for one in client.services(healthy=True, status="running")}
        assert client.update("c", {"weight": 3}, "i", generation)["service"]["weight"] == 3
        assert client.heartbeat("c", "draining", "i", generation)["ttl"] == 120
        assert "c" not in {one["name"] for one in client.services(healthy=True)}
        assert client.probe("c")["service"] == "c"
        assert client.health()["registry"] == "running"
        assert client.stats()["total_services"] >= 1
        assert client.watch(0, 0) is not None
        revision = shared.get("/services")["revision"]
        assert client.watch(revision, 0) is None
        assert "message" in client.unregister("c", "i", generation)


def test_refusals_carry_status_and_faults(shared: Any, body: Body) -> None:
    with RegistryClient(shared.url) as client:
        with pytest.raises(RegistryRefusedError, match="port") as caught:
            client.register(body(port=0, weight="x"))
        assert caught.value.status == 400
        assert [fault["key"] for fault in caught.value.faults] == ["port", "weight", "url"]
        with pytest.raises(RegistryRefusedError) as caught:
            client.heartbeat("a/b?c")
        assert caught.value.status == 404
        generation = client.register(body("held"))["generation"]
        for call in (client.unregister, client.heartbeat):
            with pytest.raises(RegistryRefusedError, match=f"generation {generation}") as caught:
                call("held", generation=generation + 1)
            assert caught.value.status == 409


def test_no_registry_there_is_its_own_error() -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    no_answer = pytest.raises(RegistryUnreachableError, match="no answer")
    with RegistryClient(nobody) as client, no_answer:
        client.health()


def test_a_registry_that_does_not_answer_in_time_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        no_answer = pytest.raises(RegistryUnreachableError, match="no answer")
        with RegistryClient(address, timeout=0.2) as client, no_answer:
            client.health()


def test_register_list_unregister_by_hand(shared: Any, command: Command, tmp_path: Path) -> None:
    registry = ("--registry", shared.url)
    metadata = '{"type": "openai-api", "models": ["m"]}'
    given = ("register", "hand", "127.0.0.1", "1001", "--hostname", "gpu1", "--metadata", metadata)
    code, output = command(*registry, *given, cwd=tmp_path)
    assert (code, "registered hand at http://127.0.0.1:1001" in output) == (0, True)
    shown = shared.get("/services/hand")
    assert (shown["hostname"], shown["metadata"]["models"]) == ("gpu1", ["m"])
    code, output = command(*registry, "list")
    assert code == 0
    assert "hand\thttp://127.0.0.1:1001\trunning\thealthy\topenai-api" in output
    assert command(*registry, "unregister", "hand") == (0, "unregistered hand")
    code, output = command(*registry, "unregister", "hand")
    assert (code, output) == (1, "refused: Service 'hand' not found")
    code, output = command(*registry, "health")
    assert (code, '"registry": "running"' in output) == (0, True)


def test_an_ipv6_address_gets_its_brackets(shared: Any, command: Command) -> None:
    assert command("--registry", shared.url, "register", "six", "::1", "1001")[0] == 0
    assert shared.get("/services/six")["url"] == "http://[::1]:1001"


def test_no_registry_there_is_exit_1(command: Command) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    code, output = command("--registry", address, "list")
    assert code == 1
    assert f"no answer from the registry at {address}" in output


def test_all_faulty_arguments_are_reported_at_once_with_exit_64(command: Command) -> None:
    given = ("register", "x", "0.0.0.0", "99999", "--metadata", "{")
    code, output = command("--registry", "ftp://x", *given)
    assert code == 64
    assert [line.split(":")[1].split()[0] for line in output.splitlines()] == [
        "--registry",
        "HOST",
        "PORT",
        "--metadata",
    ]


@pytest.mark.parametrize("token", ["secret ", "sécret"])
def test_a_token_that_cannot_be_sent_is_told_before_anything_is(
    command: Command, token: str
) -> None:
    with pytest.raises(ValueError, match=r"INFINILM_REGISTRY_TOKEN.* visible ASCII"):
        RegistryClient("http://127.0.0.1:1", token=token)
    code, output = command("list", env={"INFINILM_REGISTRY_TOKEN": token})
    assert (code, len(output.splitlines())) == (64, 1)
    assert output.startswith("error: INFINILM_REGISTRY_TOKEN must be of visible ASCII")


@pytest.mark.parametrize("arguments", [(), ("fly",), ("register", "x"), ("list", "--nonsense")])
def test_bad_usage_is_exit_64_with_the_usage(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 64
    output = capsys.readouterr().err
    assert output.startswith("usage:")
    assert "error:" in output


def test_what_the_registry_refuses_is_exit_1_with_every_fault(
    shared: Any, command: Command
) -> None:
    metadata = '{"models": "m", "health_url": "http://elsewhere/"}'
    given = ("register", "a b", "127.0.0.1", "1001", "--metadata", metadata)
    code, output = command("--registry", shared.url, *given)
    assert code == 1
    assert output.startswith("refused: Invalid value for name")
    assert "metadata: must have a list of model names" in output
