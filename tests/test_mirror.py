"""The two routers have one shape: the same modules, types and functions, in the same order.

What differs stands in mirror_exceptions.json, each with its reason; an exception that is no
longer needed fails too.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from rig.processes import ROOT

PYTHON = ROOT / "router-python" / "infinilm_router"
RUST = ROOT / "router-rust" / "src"
EXCEPTIONS = json.loads((Path(__file__).parent / "mirror_exceptions.json").read_text())

PYTHON_TYPE = re.compile(r"^class ([A-Z]\w*)", re.MULTILINE)
PYTHON_FUNCTION = re.compile(r"^(?:async )?def ([a-z]\w*)", re.MULTILINE)
RUST_TYPE = re.compile(r"^pub (?:struct|enum|trait) (\w+)", re.MULTILINE)
RUST_FUNCTION = re.compile(r"^(?:pub(?:\(\w+\))? )?(?:const |async )*fn (\w+)", re.MULTILINE)


def _modules(folder: Path, ending: str, index: str) -> dict[str, str]:
    """Text of every module by its path without ending; what only ties modules together is none."""
    paths = (path for path in folder.rglob(f"*{ending}") if path.name != index + ending)
    return {path.relative_to(folder).with_suffix("").as_posix(): path.read_text() for path in paths}


def _python() -> dict[str, str]:
    return _modules(PYTHON, ".py", "__init__")


def _rust() -> dict[str, str]:
    return _modules(RUST, ".rs", "mod")


def _unexplained(kind: str, found: Iterable[str]) -> list[str]:
    """What differs without an exception, and the exceptions without a difference."""
    differs, explained = set(found), set(EXCEPTIONS[kind])
    return [
        *(f"{name} differs" for name in sorted(differs - explained)),
        *(f"{name} needs no exception" for name in sorted(explained - differs)),
    ]


def _both(python: re.Pattern[str], rust: re.Pattern[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Names in the modules that both have."""
    ours, theirs = _python(), _rust()
    return {
        module: (python.findall(ours[module]), rust.findall(theirs[module]))
        for module in sorted(ours.keys() & theirs.keys())
    }


def _out_of_order(pairs: dict[str, tuple[list[str], list[str]]]) -> list[str]:
    return [
        module
        for module, (ours, theirs) in pairs.items()
        if [name for name in ours if name in theirs] != [name for name in theirs if name in ours]
    ]


def test_both_routers_have_the_same_files() -> None:
    ours, theirs = _python().keys(), _rust().keys()
    found = [f"python {name}" for name in ours - theirs] + [
        f"rust {name}" for name in theirs - ours
    ]
    assert not _unexplained("files", found)


def test_both_routers_have_the_same_public_types() -> None:
    found = [
        f"{side} {module} {name}"
        for module, (ours, theirs) in _both(PYTHON_TYPE, RUST_TYPE).items()
        for side, names, others in (("python", ours, theirs), ("rust", theirs, ours))
        for name in set(names) - set(others)
    ]
    assert not _unexplained("types", found)


def test_every_public_function_of_the_python_router_is_in_the_same_module_of_the_other() -> None:
    found = [
        f"{module} {name}"
        for module, (ours, theirs) in _both(PYTHON_FUNCTION, RUST_FUNCTION).items()
        for name in set(ours) - set(theirs)
    ]
    assert not _unexplained("functions", found)


def test_types_and_functions_stand_in_the_same_order() -> None:
    found = {
        *_out_of_order(_both(PYTHON_TYPE, RUST_TYPE)),
        *_out_of_order(_both(PYTHON_FUNCTION, RUST_FUNCTION)),
    }
    assert not _unexplained("order", found)


@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_every_exception_has_a_reason(kind: str) -> None:
    assert all(len(reason) > 10 for reason in EXCEPTIONS[kind].values())
