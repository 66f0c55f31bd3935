"""Who may give orders and read the log."""

import pytest

from infinilm_babysitter.access import refusal

LOCAL = {"Host": "localhost:8101"}


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize(
    "host", ["localhost:8101", "LOCALHOST", "127.0.0.1:8101", "[::1]:8101", "[::1]"]
)
def test_without_a_token_this_machine_may(peer: str, host: str) -> None:
    assert refusal("", peer, {"Host": host}) is None


@pytest.mark.parametrize(
    "peer", ["10.0.0.1", "192.168.1.2", "::ffff:10.0.0.1", "fe80::1", "", None]
)
def test_without_a_token_other_machines_may_not(peer: str | None) -> None:
    refused = refusal("", peer, LOCAL)
    assert refused is not None
    assert refused.status == 403
    assert "INFINILM_ADMIN_TOKEN" in refused.reason


@pytest.mark.parametrize(
    "header",
    [
        {"X-Forwarded-For": "10.0.0.1"},
        {"Forwarded": "for=10.0.0.1"},
        {"X-Real-IP": "10.0.0.1"},
        {"Origin": "http://elsewhere.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "rebound.example:8101"},
    ],
)
def test_without_a_token_neither_proxies_nor_web_pages_may(header: dict[str, str]) -> None:
    refused = refusal("", "127.0.0.1", LOCAL | header)
    assert refused is not None
    assert refused.status == 403


def test_with_a_token_it_alone_decides() -> None:
    right = {"Authorization": "Bearer s3cret-token"}
    assert refusal("s3cret-token", "10.0.0.1", right) is None
    assert refusal("s3cret-token", "10.0.0.1", right | {"Origin": "http://a.example"}) is None
    assert refusal("s3cret-token", "10.0.0.1", {"Authorization": "bearer  s3cret-token "}) is None


@pytest.mark.parametrize(
    "given",
    [
        *("", "Bearer", "Bearer ", "Bearer s3cret-toke", "Bearer s3cret-token2", "s3cret-token"),
        *("Basic s3cret-token", "Bearer S3CRET-TOKEN", "Bearer \udcff"),
    ],
)
@pytest.mark.parametrize("peer", ["127.0.0.1", "10.0.0.1"])
def test_with_a_token_everything_else_is_refused(given: str, peer: str) -> None:
    refused = refusal("s3cret-token", peer, LOCAL | {"Authorization": given})
    assert refused is not None
    assert refused.status == 401
    assert "s3cret" not in refused.reason
