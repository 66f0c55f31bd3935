"""A stand-in engine to try a deployment with, and the checks that it serves.

    python tests/test_service.py --port 5001

starts the mock engine on all addresses with the model `test-model-1`; every further flag is
passed on to it (`--help` lists them). It stops at SIGTERM or Ctrl-C.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import pytest
import requests

from rig.mock import MOCK_ENGINE, MOCK_ENVIRONMENT
from rig.processes import Program, Programs, free_port

DEFAULTS = ("--host", "0.0.0.0", "--port", "5001", "--models", "test-model-1")


def main(argv: Sequence[str]) -> NoReturn:
    """Become the mock engine: same process, so signals and exit code are its own."""
    # argparse takes the last one of a flag given twice: the user's flags win.
    command = [*MOCK_ENGINE, *DEFAULTS, *argv]
    os.execve(command[0], command, {**os.environ, **MOCK_ENVIRONMENT})


@pytest.fixture
def service(run: Programs) -> tuple[Program, str]:
    port = free_port()
    program = run.python("tests/test_service.py", "--port", str(port))
    program.wait_listening()
    return program, f"http://127.0.0.1:{port}"


def test_it_lists_its_model(service: tuple[Program, str]) -> None:
    _, url = service
    assert requests.get(f"{url}/health", timeout=10).status_code == 200
    listed = requests.get(f"{url}/models", timeout=10).json()
    assert [model["id"] for model in listed["data"]] == ["test-model-1"]


def test_it_says_what_it_is(service: tuple[Program, str]) -> None:
    _, url = service
    info = requests.get(f"{url}/info", timeout=10).json()
    assert info["metadata"] == {"type": "mock", "models": ["test-model-1"]}
    assert info["uptime"] >= 0


def test_it_answers_a_chat(service: tuple[Program, str]) -> None:
    _, url = service
    body = {"model": "test-model-1", "messages": [{"role": "user", "content": "Hello"}]}
    answer = requests.post(f"{url}/chat/completions", json=body, timeout=10).json()
    assert "test-model-1" in answer["choices"][0]["message"]["content"]


def test_it_stops_at_sigterm(service: tuple[Program, str]) -> None:
    program, _ = service
    assert program.stop() == 0


if __name__ == "__main__":
    main(sys.argv[1:])
