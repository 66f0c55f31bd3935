"""The suite tests itself: bad case files are refused, wrong expectations fail, gaps are real."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from rig.engine_script import parse_script
from rig.fake_engine import Settings
from rig.raw_client import Response
from rig.wire import Head
from runner.cases import check, duplicates, load_cases, load_gaps, parse_cases, read_json
from runner.exchange import Answer, answer_differences, wire_of
from runner.match import differences, header_differences, order_differences
from runner.steps import VERBS

ROOT = Path(__file__).parent
SCHEMA = read_json(ROOT / "schema.json")
CASES = load_cases()


def document(**case: Any) -> dict[str, Any]:
    steps = [{"request": {"target": "/health"}, "expect": {"status": 200}}]
    made = {"name": "a case for the tests", "clause": "D2", "setup": "one", "steps": steps}
    return {"feature": "sample", "cases": [made | case]}


def missing(wanted: list[str]) -> list[str]:
    """Those texts that no case's clause mentions ("HTTP 1.1" is not mentioned by "HTTP 1.12")."""
    clauses = " ".join(case.clause for case in CASES)
    return [text for text in wanted if not re.search(rf"{re.escape(text)}(?![0-9])", clauses)]


def answer(status: int = 200, body: bytes = b"{}", **fields: str) -> Answer:
    head = Head(f"HTTP/1.1 {status} x", tuple(fields.items()))
    return Answer(Response(head, body, (), True, False, "open"), "", 0.1)


def test_every_case_file_is_valid_and_every_name_is_used_once() -> None:
    assert len(CASES) > 200
    assert len({case.id for case in CASES}) == len(CASES)


def test_every_clause_of_the_router_contract_has_a_case() -> None:
    contract = ["GET /health", "GET /status", "GET /stats", "GET /services", "GET /models"]
    contract += ["GET /v1/models", "/v1/models/{id}", "any other path", "no engine up"]
    contract += ["connect refused", "before the first byte", "broken reply", "model_not_found"]
    contract += ["--static-services", "backup", "max_fails", "metadata.static", "registry sync"]
    contract += ["gone from the registry", "cannot be reached", "health probe", "health_url"]
    contract += ["port + 1", "without models", "router_config.json", "exit 64", "cache_type"]
    contract += ["PROXY_TIMEOUT_SECONDS", "CLI", *(f"D{number}" for number in (2, 3, 4, 5, 6))]
    contract += [f"D{number}" for number in (9, 10, 11, 13, 14, 15, 17)]
    assert missing(contract) == []


def test_the_rows_that_a_router_answers_for_have_cases() -> None:
    rows = (1, 5, 6, 9, 10, 11, 13, 14, 15, 16, 21, 22, 35, 36, 38, 39)
    assert missing([f"R{row}" for row in rows]) == []


def test_every_rule_of_the_http_page_has_a_case() -> None:
    rules = [f"HTTP 1.{n}" for n in range(1, 14)] + [f"HTTP 2.{n}" for n in range(1, 9)]
    rules += ["HTTP 3", "HTTP 4", *(f"HTTP 5.{n}" for n in range(1, 7)), "HTTP 6", "HTTP 7"]
    assert missing(rules) == []


def test_every_script_and_setting_is_one_that_the_fake_engine_knows() -> None:
    known = {field.name for field in fields(Settings)}
    for case in CASES:
        for engine in case.setup.get("engines", {}).values():
            assert set(engine.get("settings", {})) <= known
        for step in case.steps:
            for request in [step[verb] for verb in ("request", "start", "leave") if verb in step]:
                parse_script(request.get("script", {}), {}, "/v1/chat/completions")


@pytest.mark.parametrize(
    "change",
    [
        {"steps": []},
        {"clause": "somewhere"},
        {"name": "short"},
        {"stpes": []},
        {"steps": [{"request": {"targte": "/"}}]},
        {"steps": [{"request": {}, "expect": {"staus": 200}}]},
        {"steps": [{"request": {"script": {"statsu": 1}}}]},
        {"steps": [{"unknown": {}}]},
        {"steps": [{"healthy": "1/1", "pause": 1}]},
        {"steps": [{"pause": 60}]},
    ],
)
def test_a_misspelt_case_is_refused(change: dict[str, Any]) -> None:
    check(document(), SCHEMA, "good.json")
    with pytest.raises(ValueError, match=r"bad\.json"):
        check(document(**change), SCHEMA, "bad.json")


def test_every_fault_of_a_file_is_reported() -> None:
    bad = document(clause="nowhere", name="x")
    with pytest.raises(ValueError, match=r"(?s)clause.*name|name.*clause"):
        check(bad, SCHEMA, "bad.json")


def test_names_and_keys_that_stand_twice_are_found(tmp_path: Path) -> None:
    assert duplicates(["a", "b", "a"]) == ["a"]
    path = tmp_path / "twice.json"
    path.write_text('{"x": 1, "x": 2}')
    with pytest.raises(ValueError, match=r"twice\.json: a key stands twice"):
        read_json(path)


def test_a_gap_for_a_case_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    (tmp_path / "known_gaps.json").write_text(json.dumps({"python": {"gone: case": "why"}}))
    cases = parse_cases(document(), {"one": {}})
    with pytest.raises(ValueError, match="gone: case"):
        load_gaps(cases, tmp_path)


def test_every_kind_of_step_in_the_schema_can_be_done() -> None:
    kinds = {kind["required"][0] for kind in SCHEMA["$defs"]["step"]["oneOf"]}
    assert kinds - {"command"} == set(VERBS)


@pytest.mark.parametrize(
    "expect",
    [
        {"status": 201},
        {"headers": {"x-a": "2"}},
        {"headers": {"x-a": None}},
        {"headers": {"x-b": "1"}},
        {"order": ["X-B", "X-A"]},
        {"error": "overloaded"},
        {"json": {"a": 2}},
        {"json": {"b": 1}},
        {"body": "other"},
        {"lines": ["other"]},
        {"lines": ["{.a."]},
        {"pattern": 5},
        {"base64": "AAAA"},
        {"events": ["[DONE]"]},
        {"stream": {"chunks": 1}},
        {"contents": 1},
        {"comments": 1},
        {"stream_error": "upstream_reset"},
        {"whole": False},
        {"chunked": True},
        {"none": True},
        {"seconds": [1, 2]},
    ],
)
def test_a_wrong_expectation_fails(expect: dict[str, Any]) -> None:
    came = answer(200, b'{"a": 1}', **{"X-A": "1"})
    assert (
        answer_differences({"status": 200, "headers": {"x-a": "1"}, "json": {"a": 1}}, came) == []
    )
    assert answer_differences(expect, came) != []


def test_an_answer_that_did_not_come_fails_unless_it_is_expected() -> None:
    nothing = Answer(None, "reset", 0.1)
    assert answer_differences({"status": 200}, nothing) == ["reset"]
    assert answer_differences({"none": True}, nothing) == []


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": None}, {}, False),
        (True, 1, False),
        (1, 1.0, True),
        ({"$type": "int"}, True, False),
        ({"$type": "number"}, 1.5, True),
        ({"$matches": "^a"}, "ba", False),
        ({"$contains": [{"n": 1}]}, [{"n": 2}, {"n": 1, "x": 1}], True),
        ({"$contains": [{"n": 3}]}, [{"n": 2}], False),
        ({"$length": 2}, [1, 2], True),
        ({"$any": True}, None, True),
    ],
)
def test_json_is_compared_as_described(expected: Any, actual: Any, same: bool) -> None:
    assert (differences(expected, actual) == []) is same


def test_repeated_headers_are_compared_as_a_list() -> None:
    fields = [("Set-Cookie", "a"), ("X", "1"), ("set-cookie", "b")]
    assert header_differences({"set-cookie": ["a", "b"]}, fields) == []
    assert header_differences({"set-cookie": "a"}, fields) != []
    assert order_differences(["Set-Cookie", "X", "set-cookie"], fields) == []


def test_requests_are_built_from_their_parts() -> None:
    request = {"chunks": ["ab", "c"], "headers": [["X", "1"]], "target": "/v1/x"}
    built = wire_of(request)
    assert built.startswith(b"POST /v1/x HTTP/1.1\r\nHost: router.test\r\nX: 1\r\n")
    assert built.endswith(b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
