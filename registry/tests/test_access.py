from typing import Any

import pytest

from infinilm_registry.access import WriteAccess, WriteLimiter, is_local
from infinilm_registry.errors import ForbiddenError, UnauthorizedError, WriteLimitError


@pytest.mark.parametrize(
    "peer",
    ["127.0.0.1", "127.9.9.9", "::1", "::ffff:10.0.0.5", "172.16.0.1", "192.168.3.4", "fd00::2"],
)
def test_loopback_and_private_peers_are_local(peer: str) -> None:
    assert is_local(peer)


@pytest.mark.parametrize(
    "peer", [None, "", "8.8.8.8", "172.32.0.1", "::ffff:8.8.8.8", "2001:db8::1", "203.0.113.9", "x"]
)
def test_all_other_peers_are_not(peer: str | None) -> None:
    assert not is_local(peer)


def test_r33_without_a_token_only_programs_nearby_may_write() -> None:
    access = WriteAccess(None)
    access.check("10.0.0.1", "", None)
    with pytest.raises(ForbiddenError):
        access.check("8.8.8.8", "Bearer x", None)
    with pytest.raises(ForbiddenError):
        access.check("127.0.0.1", "", "http://evil.example")


@pytest.mark.parametrize(
    "given",
    [
        "",
        "secret",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic secret",
        "Bearer secret2",
        "Bearer é",
    ],
)
def test_r33_with_a_token_every_other_one_is_refused_wherever_it_comes_from(given: str) -> None:
    with pytest.raises(UnauthorizedError):
        WriteAccess("secret").check("127.0.0.1", given, None)


def test_the_right_token_passes_from_anywhere() -> None:
    WriteAccess("secret").check("8.8.8.8", "Bearer secret", "http://console.example")
    WriteAccess("secret").check("8.8.8.8", "bearer  secret", None)


def test_a_client_has_its_burst_and_then_its_rate(clock: Any) -> None:
    limiter = WriteLimiter(50, 1000, clock)
    for _ in range(1000):
        limiter.take("a")
    with pytest.raises(WriteLimitError) as caught:
        limiter.take("a")
    assert caught.value.retry_after == pytest.approx(1 / 50)
    limiter.take("b")
    clock.pass_by(1)
    for _ in range(50):
        limiter.take("a")
    with pytest.raises(WriteLimitError):
        limiter.take("a")


def test_the_limiter_remembers_a_bounded_number_of_clients(clock: Any) -> None:
    limiter = WriteLimiter(1, 2, clock)
    for number in range(25_000):
        limiter.take(str(number))
    assert len(limiter._buckets) <= 10_000
