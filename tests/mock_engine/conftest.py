"""One mock engine without pace for all tests that only look at answers."""

from collections.abc import Iterator

import pytest
from openai import OpenAI

from rig.mock import start_mock_engine
from rig.processes import programs


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """The base URL of an engine that serves `small` and `org/big:v1` as fast as it can."""
    with programs() as run:
        _, url = start_mock_engine(
            run,
            "--models",
            "small,org/big:v1",
            "--tokens-per-second",
            "0",
            "--max-model-len",
            "4096",
        )
        yield url


@pytest.fixture
def client(engine: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{engine}/v1", api_key="unused", max_retries=0) as made:
        yield made
