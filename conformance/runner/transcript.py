"""What came of a case, such that the transcripts of two routers can be compared field by field.

Left out is what must differ: ports, moments and measured times, ids that a router makes up, its own
id in `Via`, where an answer was cut into chunks, how many comments filled a silence, and values
(not names) of metrics.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rig.raw_client import Response
from runner.exchange import Answer

TIMES = {"timestamp", "started_at", "last_check"}
# Of these only the type must be the same: how often something was asked until it was so counts too.
MEASURED = {"response_time", "uptime", "request_count", "requests"}
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00\Z")
VIA = re.compile(r"(?<=1\.1 infinilm-)[0-9a-f]{8}")
ID_FIELD = re.compile(r"(?<=x-request-id: )[^\r\n]+", re.IGNORECASE)
# Which results probes have come to is a matter of moments.
PROBES = re.compile(r"^infinilm_router_engine_probes_total\{.*\n", re.MULTILINE)
SAMPLE = re.compile(r"^([a-z_]+(?:\{[^}]*\})?) \S+$", re.MULTILINE)

COMMENTS = re.compile(r"(?:(?<=\n\n)|\A)(?::\n\n)+")
Lines = list[str]


@dataclass
class Transcript:
    """Answers in their order, and the distinct requests that each engine got."""

    answers: list[Any] = field(default_factory=list)
    received: dict[str, set[str]] = field(default_factory=dict)

    def differences(self, other: "Transcript") -> Lines:
        """What is not equal, one line each."""
        found = []
        if len(self.answers) != len(other.answers):
            found.append(f"{len(self.answers)} answers / {len(other.answers)}")
        for number, pair in enumerate(zip(self.answers, other.answers, strict=False), 1):
            found += [f"answer {number}: {text}" for text in _unequal(*pair)]
        for name in self.received.keys() | other.received.keys():
            mine, theirs = self.received.get(name, set()), other.received.get(name, set())
            if mine != theirs:
                found.append(f"received by {name}: {mine - theirs} / {theirs - mine}")
        return found


def _unequal(one: Any, other: Any, where: str = "") -> Lines:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        return [
            text
            for key in sorted(keys)
            for text in _unequal(one.get(key), other.get(key), f"{where}.{key}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [text for n, pair in pairs for text in _unequal(*pair, f"{where}[{n}]")]
    return [] if one == other else [f"{where}: {one!r} / {other!r}"]


@dataclass
class Scribe:
    """Writes transcripts; `names` are the ports of this run and what to call them."""

    names: dict[int, str]

    def answer(self, answer: Answer) -> Any:
        """Everything about an answer that must be the same."""
        response = answer.response
        if response is None:
            return {"none": answer.fault.partition(":")[0]}
        return {
            "start": response.head.start,
            "headers": sorted(self._fields(response)),
            "body": self._body(response),
            "whole": response.whole,
            "chunked": response.chunked,
            "ending": None if response.whole else response.ending,
        }

    def request(self, raw: bytes) -> str:
        """A request as an engine got it."""
        return self._text(VIA.sub("ID", ID_FIELD.sub(_made_up, raw.decode("latin-1"))))

    def _fields(self, response: Response) -> Iterable[tuple[str, str]]:
        for name, value in response.headers:
            if name.lower() == "content-length" and value == str(len(response.body)):
                yield name, "as long as the body"
            elif name.lower() == "x-request-id":
                yield name, _made_up(value)
            elif name.lower() != "date":
                yield name, self._text(value)

    def _body(self, response: Response) -> Any:
        text = response.body.decode("latin-1")
        if request_id := response.get("x-request-id"):
            text = text.replace(request_id, _made_up(request_id))
        if text.startswith("# "):
            return SAMPLE.sub(r"\1", self._text(PROBES.sub("", text))).splitlines()
        try:
            return self._timeless(json.loads(text))
        except ValueError:
            return COMMENTS.sub(":\n\n", self._text(text))

    def _timeless(self, value: Any, key: str = "") -> Any:
        if key in MEASURED:
            return type(value).__name__
        if key in TIMES:
            first_is_to_come = key == "last_check" and value is None
            return "a moment" if first_is_to_come or MOMENT.match(value) else value
        if isinstance(value, dict):
            return {name: self._timeless(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [self._timeless(item) for item in value]
        return self._text(value) if isinstance(value, str) else self.names.get(value, value)

    def _text(self, text: str) -> str:
        for port, name in self.names.items():
            text = re.sub(rf"(?<!\d){port}(?!\d)", name, text)
        return text


def _made_up(value: str | re.Match[str]) -> str:
    """Ids that a router makes up are all called the same."""
    text = value if isinstance(value, str) else value[0]
    return "an id" if re.fullmatch(r"[0-9a-f]{8,40}(-[0-9a-f]+)*", text) else text
