from ipaddress import ip_network

import pytest

from infinilm_registry.addresses import base_url_problem, host_problem, url_problem

BAD_HOSTS = [
    "",
    " ",
    "a b",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "169.254.169.254",
    "fe80::1",
    "fe80::1%eth0",
    "::1%lo",
    "224.0.0.1",
    "ff02::1",
    "255.255.255.255",
    "240.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "127.1",
    "127.0.0.01",
    "0177.0.0.1",
    "1.2.3.4.5",
    "engine.0x1f",
    "host:80",
    "user@host",
    "host/path",
    "http://host",
    "[::1]",
    "-host",
    "host..name",
    ".host",
    "host\n",
    "hôst",
    "a" * 254,
]


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_r34_a_host_that_is_no_engine_address_is_refused(host: str) -> None:
    assert host_problem(host, ())


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "::1",
        "fd00::1",
        "10.1.2.3",
        "gpu-1.rack_2.example",
        "8.8.8.8",
        "a1",
    ],
)
def test_names_and_plain_addresses_are_taken(host: str) -> None:
    assert host_problem(host, ()) is None


def test_the_address_to_listen_on_is_refused_with_what_to_do_instead() -> None:
    assert "register this machine's name or address instead" in str(host_problem("0.0.0.0", ()))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:1001",
        "//host:1001",
        "ftp://host:1001",
        "file:///etc/passwd",
        "gopher://host:1001",
        "javascript:alert(1)",
        "http://",
        "http://user@host:1001",
        "http://user:pw@host:1001",
        "http://@host:1001",
        "http://host:1001#x",
        "http://host:1001/?q=1",
        "http://host:1001?",
        "http://host:1001/../x",
        "http://host:1001/a/./b",
        "http://host:1001/%2e%2e/x",
        "http://host:1001/a%2fb",
        "http://host:1001/a//b",
        "http://host:1001\\@other",
        "http://host:1001/a b",
        "http://host:1001/\r\nx",
        "http://hôst:1001",
        "http://host:0",
        "http://host:70000",
        "http://host:x",
        "http://host:1002",
        "http://host",
        "https://host",
        "http://other:1001",
        "http://host.:1001",
        "http://[::1]:1001",
        "http://2130706433:1001",
    ],
)
def test_r34_a_url_that_is_not_the_engines_base_url_is_refused(url: str) -> None:
    assert url_problem(url, "host", 1001)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://host:1001", "host", 1001),
        ("http://HOST:1001/", "host", 1001),
        ("https://host", "host", 443),
        ("http://host", "host", 80),
        ("http://host:1001/api/v1", "host", 1001),
        ("http://[::1]:1001", "::1", 1001),
        ("http://[0:0:0:0:0:0:0:1]:1001", "::1", 1001),
    ],
)
def test_base_urls_of_the_registered_place_are_taken(url: str, host: str, port: int) -> None:
    assert url_problem(url, host, port) is None


def test_allowed_networks_bind_addresses_and_leave_names_to_the_resolver() -> None:
    allowed = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert host_problem("10.9.9.9", allowed) is None
    assert host_problem("fd00::5", allowed) is None
    assert "outside the allowed networks" in str(host_problem("192.168.1.1", allowed))
    assert host_problem("localhost", allowed) is None


def test_a_base_url_is_checked_without_host_and_port_too() -> None:
    assert base_url_problem("http://anything:5") is None
    assert base_url_problem("http://[::1") is not None
