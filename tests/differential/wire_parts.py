"""What requests and answers have in common: lines, chunks, cuts, and single wrong bytes."""
# ruff: noqa: E501 - tables are easier to read in long lines

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[Any]], Any]

ODD_BYTES = [b"\r", b"\n", b"\0", b" ", b"\t", b":", b";", b",", b"\x80", b"\x7f", b"\r\n", b"\x0b", b"/", b"\r\n "]  # fmt: skip


@cache
def _whole(most: int) -> st.SearchStrategy[int]:
    return st.integers(0, most)


def upto(draw: Draw, most: int) -> int:
    """A whole number from 0 to `most`. Every choice is one: hypothesis draws them fastest."""
    return int(draw(_whole(most)))


def rarely(draw: Draw, times: int) -> bool:
    """True once in `times` draws; shrinks to False."""
    return upto(draw, times - 1) == times - 1


def pick(draw: Draw, options: Sequence[T]) -> T:
    """One of the options; shrinks to the first."""
    return options[upto(draw, len(options) - 1)]


def mostly(draw: Draw, usual: T, others: Sequence[T], times: int = 8) -> T:
    """The usual value, once in `times` draws another."""
    at = upto(draw, len(others) * times - 1) - len(others) * (times - 1)
    return usual if at < 0 else others[at]


def several(draw: Draw, options: Sequence[T], most: int) -> list[T]:
    """Up to `most` of the options, in any order, repeated or not."""
    return [pick(draw, options) for _ in range(upto(draw, most))]


def places(draw: Draw, size: int, most: int) -> list[int]:
    """Up to `most` sorted places in something of `size` bytes."""
    return sorted(upto(draw, size) for _ in range(upto(draw, most)))


ODD_COLONS = [":", ":  ", ":\t", " : ", "", ":\r\n ", " "]


def lines(draw: Draw, start: str, fields: list[tuple[str, str]]) -> bytes:
    """A head; a separator is now and then odd. What Latin-1 does not have becomes UTF-8."""
    made = [start, *(f"{name}: {value}" for name, value in fields)]
    if fields and rarely(draw, 12):
        at = upto(draw, len(fields) - 1)
        made[at + 1] = pick(draw, ODD_COLONS).join(fields[at])
    return b"\r\n".join(_encoded(line) for line in [*made, "", ""])


def _encoded(line: str) -> bytes:
    try:
        return line.encode("latin-1")
    except UnicodeEncodeError:
        return line.encode()


def spoilt(draw: Draw, data: bytes) -> bytes:
    """One byte inserted, replaced or left out."""
    at = upto(draw, max(0, len(data) - 1))
    how = pick(draw, ["insert", "replace", "drop"])
    odd = b"" if how == "drop" else pick(draw, ODD_BYTES)
    return data[:at] + odd + data[at + (how != "insert") :]


SIZES = ["{:x}", "{:X}", "{:04x}", "0{:x}", "{:x};a=b", "{:x} ;a", "{:x};a=\"b;c\"", "{:x}; {}".replace("{}", "y" * 240), "{:x}\t;", "{:x};"]  # fmt: skip
BAD_SIZES = ["{:x} ", "0x{:x}", "+{:x}", "-{:x}", "", "g", "{:016x}", "{:017x}", " {:x}", "{:x};\x01", "{:x};" + "y" * 300, "{:x},", "fffffffffffffff", "{:x}\t", "{:x};\u00e9", "{:x}:"]  # fmt: skip
TRAILERS = ["X-T: 1\r\n", "X-T:\r\nContent-Length: 3\r\n", "Transfer-Encoding: chunked\r\n"]
BAD_TRAILERS = ["X T: 1\r\n", "x\r\n", "X-T : 1\r\n", " X-T: 1\r\n", "X-T: 1\n", "X-T: \x01\r\n", ": 1\r\n", "X-T: 1\r\n folded\r\n", "X-Long: " + "x" * 17_000 + "\r\n", "X-T: \u00e9\r\n"]  # fmt: skip


def chunked(draw: Draw, body: bytes) -> bytes:
    """The body in chunks of random sizes; the framing is mostly sound."""
    cuts = places(draw, len(body), 3) if body else []
    edges = [0, *cuts, len(body)]
    made = []
    for start, stop in pairwise(edges):
        if start < stop:
            size = mostly(draw, "{:x}", SIZES, 6)
            size = mostly(draw, size, BAD_SIZES, 60).format(stop - start)
            ends = mostly(draw, ("\r\n", "\r\n"), [("\n", "\r\n"), ("\r\n", "\n"), ("\r\n", ""), ("\r", "\r\n"), ("\r\n", "\r\n\r\n")], 80)  # fmt: skip
            made.append(
                size.encode("latin-1") + ends[0].encode() + body[start:stop] + ends[1].encode()
            )
    last = mostly(draw, "0", ["00", "000000000000000", "0;x", "0" * 16, "0 "], 12)
    trailers = mostly(draw, "", TRAILERS, 8)
    trailers = mostly(draw, trailers, BAD_TRAILERS, 40)
    end = mostly(draw, "\r\n", ["", "\n", "\r\n\r\n", "\r"], 80)
    return b"".join(made) + f"{last}\r\n{trailers}{end}".encode("latin-1")


def cut(draw: Draw, data: bytes) -> tuple[bytes, ...]:
    """The bytes in one piece, a few, or each alone."""
    how = pick(draw, ["whole"] * 6 + ["few"] * 5 + ["bytes"])
    if how == "bytes" and len(data) < 150:
        return tuple(data[at : at + 1] for at in range(len(data)))
    if how == "whole" or not data:
        return (data,)
    cuts = places(draw, len(data), 4)
    edges = [0, *cuts, len(data)]
    return tuple(data[a:b] for a, b in pairwise(edges) if a < b)
