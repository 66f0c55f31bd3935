"""Read the case files, check them against schema.json, and sort them by the programs they need."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

ROOT = Path(__file__).resolve().parents[1]
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One case; `setup` is what runs (router settings, engines, registry), `steps` what is done."""

    feature: str
    name: str
    clause: str
    setup: Json
    steps: tuple[Json, ...]
    fresh: bool = False
    cli: bool = False

    @property
    def id(self) -> str:
        return f"{self.feature}: {self.name}"

    @property
    def group(self) -> str:
        """Cases of one group share running programs."""
        return json.dumps(self.setup, sort_keys=True)


def _object_of_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"a key stands twice in {keys}")
    return dict(pairs)


def read_json(path: Path) -> Any:
    """A JSON file; a key that stands twice in one object is an error."""
    try:
        return json.loads(path.read_text(), object_pairs_hook=_object_of_distinct_keys)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def check(document: Json, schema: Json, name: str) -> None:
    """ValueError with every fault of a case file."""
    validator = jsonschema.Draft202012Validator(schema)
    faults = [
        f"{name}: {fault.json_path}: {fault.message}" for fault in validator.iter_errors(document)
    ]
    if faults:
        raise ValueError("\n".join(faults))


def parse_cases(document: Json, shared_setups: Json) -> list[Case]:
    """The cases of one checked file; a case names a setup of its file or of setups.json."""
    setups = {**shared_setups, **document.get("setups", {})}
    return [
        Case(
            feature=document["feature"],
            name=case["name"],
            clause=case["clause"],
            setup=setups[case["setup"]] if "setup" in case else {},
            steps=tuple(case["steps"]),
            fresh=case.get("fresh", False),
            cli="setup" not in case,
        )
        for case in document["cases"]
    ]


def load_cases(folder: Path = ROOT) -> list[Case]:
    """Every case of every file, sorted so that those which share programs stand together."""
    schema, shared = read_json(folder / "schema.json"), read_json(folder / "setups.json")
    cases: list[Case] = []
    for path in sorted((folder / "cases").glob("*.json")):
        document = read_json(path)
        check(document, schema, path.name)
        if document["feature"] != path.stem:
            raise ValueError(f"{path.name}: its feature is {document['feature']!r}")
        cases += parse_cases(document, shared)
    if twice := duplicates(case.id for case in cases):
        raise ValueError(f"these case names stand twice: {twice}")
    return sorted(cases, key=lambda case: (case.cli, case.group, case.fresh))


def duplicates(names: Iterable[str]) -> list[str]:
    """What stands more than once in `names`."""
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def load_gaps(cases: Iterable[Case], folder: Path = ROOT) -> dict[str, dict[str, str]]:
    """Known gaps: router -> case -> why. Naming a case that does not exist is an error."""
    gaps: dict[str, dict[str, str]] = read_json(folder / "known_gaps.json")
    known = {case.id for case in cases}
    if stray := [name for entries in gaps.values() for name in entries if name not in known]:
        raise ValueError(f"known_gaps.json names cases that do not exist: {stray}")
    return gaps
