"""Reads Prometheus' text form: the values of some metrics, each summed over all its labels."""

import math
import re
from collections.abc import Collection

# Labels may hold anything, `}` and blanks included, but only inside of quotes.
SAMPLE = re.compile(
    r'(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?[ \t]+(?P<value>\S+)',
    re.ASCII,
)


def sums(text: str, names: Collection[str]) -> dict[str, float]:
    """The metrics of `names` that the page has. Lines that cannot be understood are skipped."""
    prefixes = tuple(names)
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith(prefixes):  # most of a page are histograms of no interest here
            continue
        match = SAMPLE.match(line)
        if match is None or match["name"] not in names:
            continue
        value = _number(match["value"])
        if value is not None:
            found[match["name"]] = found.get(match["name"], 0.0) + value
    return found


def _number(text: str) -> float | None:
    """None for NaN too: it would compare as changed with every look."""
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else value
