"""R39: paths cannot be confused."""

import json

from rig.fake_engine import FakeEngine
from rig.farm import Farm
from rig.flows import static
from rig.raw_client import RawClient, request_bytes
from rig.routers import Router, StartRouter

LOCAL, ENGINE, NOT_FOUND, BAD, LONG = "local", "engine", "404", "400", "414"

# A spelling of a path, and who answers it: the router itself, an engine that gets the very bytes,
# or nobody. The router's own endpoints are taken by their exact names only.
SPELLINGS = {
    "/services": LOCAL,
    "/metrics": LOCAL,
    "/services?x=/v1/models": LOCAL,
    "http://router.test/services": LOCAL,
    "http://evil.test/services": BAD,
    "http://router.test@evil.test/services": BAD,
    "ftp://router.test/services": BAD,
    "//router.test/services": NOT_FOUND,
    "//services": NOT_FOUND,
    "///services": NOT_FOUND,
    "/services/": NOT_FOUND,
    "/services//": NOT_FOUND,
    "/services;x": NOT_FOUND,
    "/services;x=1/": NOT_FOUND,
    "/services%20": NOT_FOUND,
    "/services%3f": NOT_FOUND,
    "/services%23": NOT_FOUND,
    "/services%00": BAD,
    "/services\x00": BAD,
    "/services#x": BAD,
    "/services\\": BAD,
    "\\services": BAD,
    "services": BAD,
    "*": BAD,
    "/%73ervices": NOT_FOUND,
    "/%53ervices": NOT_FOUND,
    "/%2fservices": NOT_FOUND,
    "/%2Fservices": NOT_FOUND,
    "/%c0%afservices": NOT_FOUND,
    "/%25%37%33ervices": NOT_FOUND,
    "/SERVICES": NOT_FOUND,
    "/Services": NOT_FOUND,
    "/v1/../services": BAD,
    "/v1/%2e%2e/services": BAD,
    "/v1/%2E%2E/services": BAD,
    "/v1/.%2e/services": BAD,
    "/v1/..%2fservices": BAD,
    "/v1/%2e%2e%2fservices": BAD,
    "/v1/./services": BAD,
    "/./services": BAD,
    "/services/.": BAD,
    "/services/..": BAD,
    "/.services": NOT_FOUND,
    "/v1/%252e%252e/services": ENGINE,
    "/v1/%c0%ae%c0%ae/services": ENGINE,
    "/v1/..;/services": ENGINE,
    "/v1/services": ENGINE,
    "/v1//services": ENGINE,
    "/v1/%73ervices": ENGINE,
    "/v1/chat/completions/": ENGINE,
    "/V1/chat/completions": NOT_FOUND,
    "/%76%31/chat/completions": NOT_FOUND,
    "//v1/chat/completions": NOT_FOUND,
    "/v1": NOT_FOUND,
    "/v1%2fchat": NOT_FOUND,
    "/sleep": NOT_FOUND,
    "/" + "a" * 9000: LONG,
    "/v1/" + "a" * 9000: LONG,
}


def answered_by(router: Router, method: str, spelling: str) -> str:
    """Who answers a spelling; of errors of the router the status."""
    with RawClient(router.url) as client:
        client.send(request_bytes(method, spelling))
        answer = client.read(method)
    if answer.get("x-infinilm-service"):
        return ENGINE
    if answer.get("x-infinilm-error"):
        assert {"message", "type", "code"} <= set(json.loads(answer.body)["error"])
        return str(answer.status)
    own = b'"services":' in answer.body or answer.body.startswith(b"# HELP infinilm_router_")
    return LOCAL if own else f"somebody else: {answer.body[:200]!r}"


def test_each_of_many_spellings_has_exactly_one_meaning(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine))
    found = {spelling: answered_by(router, "GET", spelling) for spelling in SPELLINGS}
    wrong = {s: who for s, who in found.items() if who != SPELLINGS[s]}
    forwarded = [spelling for spelling, who in SPELLINGS.items() if who == ENGINE]
    print(f"R39 {router.name}: {len(found)} spellings, {len(wrong)} confused")
    assert wrong == {}
    assert [record.request.target for record in fakes.records(engine)] == forwarded
    assert engine.server.errors == []
    assert len(SPELLINGS) >= 40


def test_a_method_does_not_open_what_a_path_closes(
    start: StartRouter, fakes: Farm, engine: FakeEngine
) -> None:
    router = start(static(engine))
    found = {spelling: answered_by(router, "POST", spelling) for spelling in SPELLINGS}
    closed = {s: who for s, who in found.items() if who in (LOCAL, ENGINE)}
    assert sorted(closed) == sorted(s for s, who in SPELLINGS.items() if who == ENGINE)
    assert len(fakes.records(engine)) == len(closed)
