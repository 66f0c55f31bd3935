"""Which of several registries is listened to."""

import asyncio
from collections.abc import Mapping

import pytest

from infinilm_babysitter.registry_client import (
    Answer,
    RegistryClient,
    RegistryUnavailableError,
    parse,
)

OK, UNKNOWN = Answer(200, {"message": "ok"}), Answer(404, {"error": "not found"})
DEGRADED, DOWN = Answer(200, {"degraded": True}), Answer(503, {"error": "etcd does not answer"})


class Registries(RegistryClient):
    """Registries a, b, ... that always answer the same."""

    def __init__(self, **answers: Answer | Exception) -> None:
        self._urls = list(answers)
        self._answers = answers

    async def _send(self, _: str, url: str, __: Mapping[str, object] | None) -> Answer:
        answer = self._answers[url.partition("/")[0]]
        if isinstance(answer, Exception):
            raise answer
        return answer


def ask(registries: Registries) -> Answer:
    return asyncio.run(registries.call("POST", "/services/e/heartbeat"))


@pytest.mark.parametrize(
    ("first", "second", "heard", "preferred"),
    [
        (OK, DOWN, OK, "a"),
        (OSError(), OK, OK, "b"),
        (DOWN, OK, OK, "b"),
        (UNKNOWN, OK, UNKNOWN, "a"),
        (DEGRADED, OK, OK, "b"),  # cut off from the store that both have in common
        (DEGRADED, UNKNOWN, DEGRADED, "a"),  # a registry by itself, with a full disk
        (DEGRADED, DEGRADED, DEGRADED, "a"),
        (DEGRADED, OSError(), DEGRADED, "a"),
        (OSError(), DEGRADED, DEGRADED, "b"),
    ],
)
def test_the_first_registry_that_is_well_is_heard(
    first: Answer | Exception, second: Answer | Exception, heard: Answer, preferred: str
) -> None:
    registries = Registries(a=first, b=second)
    assert ask(registries) is heard
    assert registries.urls[0] == preferred


def test_without_any_answer_every_reason_is_told() -> None:
    with pytest.raises(RegistryUnavailableError, match="a: refused; b: etcd does not answer"):
        ask(Registries(a=OSError("refused"), b=DOWN))


@pytest.mark.parametrize("text", [b"", b"no JSON", b"[1]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_counts_as_an_empty_one(text: bytes) -> None:
    assert parse(text) == {}
