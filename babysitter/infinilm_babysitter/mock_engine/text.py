"""Tokens and made-up text: pure functions, the same answer for the same request, always."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence

# A toy tokenizer: words in pieces of at most 8 characters, everything else character by
# character, a blank with what follows it. Joining the tokens gives back the text.
_TOKEN = re.compile(r"\s?[A-Za-z0-9_]{1,8}|\s?[^\sA-Za-z0-9_]|\s")

_SUBJECTS = (
    "The router", "The registry", "A babysitter", "An engine", "This answer", "A patient client",
    "The next token", "A short prompt", "The queue", "A warm cache", "The health probe",
    "A long conversation", "The scheduler", "Another stream", "The first byte", "A quiet server",
)  # fmt: skip
_VERBS = (
    "waits for", "finds", "passes on", "counts", "remembers", "follows", "answers", "listens to",
    "carries", "sorts", "checks", "hands over", "welcomes", "measures", "repeats", "describes",
)  # fmt: skip
_OBJECTS = (
    "the next request", "a steady beat", "every word in order", "the shortest path",
    "two messages", "an open connection", "the same seed", "a free slot", "the last event",
    "a small change", "its own log", "a calm evening", "the list of models", "one more token",
    "a known pattern", "the whole story",
)  # fmt: skip


def tokenize(text: str) -> list[str]:
    """The text cut into tokens; `"".join` of them is the text again."""
    return _TOKEN.findall(text)


def count_tokens(text: str) -> int:
    """How many tokens the text has, without keeping them."""
    return sum(1 for _ in _TOKEN.finditer(text))


def fingerprint(*parts: bytes) -> bytes:
    """32 bytes that depend on every part and on where one part ends."""
    digest = hashlib.blake2b(digest_size=32)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _filler(seed: bytes) -> Iterator[str]:
    """Endless sentences, decided by the seed alone."""
    for number in itertools.count():
        subject, verb, thing = fingerprint(seed, number.to_bytes(8, "big"))[:3]
        yield f" {_SUBJECTS[subject % 16]} {_VERBS[verb % 16]} {_OBJECTS[thing % 16]}."


def answer_tokens(opening: str, seed: bytes, *, endless: bool) -> Iterator[str]:
    """Tokens of an answer: the opening, then filler for ever if `endless`."""
    yield from tokenize(opening)
    if endless:
        for sentence in _filler(seed):
            yield from tokenize(sentence)


def _held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that may yet grow into one of the stop strings."""
    return max(
        (
            length
            for stop in stops
            for length in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:length])
        ),
        default=0,
    )


class Generation:
    """One answer being generated, token by token.

    `tokens` counts what was generated, `finish_reason` is set when the answer is over:
    `stop` (its natural end, or a stop string) or `length` (`max_tokens` reached).
    """

    def __init__(
        self, source: Iterator[str], max_tokens: int | None, stops: Sequence[str] = ()
    ) -> None:
        self._source = source
        self._max_tokens = max_tokens
        self._stops = stops
        self._pending = ""
        self.tokens = 0
        self.finish_reason: str | None = "length" if max_tokens == 0 else None

    def step(self) -> str:
        """Generate one token and return the text that may be shown now, possibly none.

        Text that could be the beginning of a stop string is kept until the next token decides.
        """
        token = next(self._source, None)
        if token is None:
            return self._finish("stop")
        self.tokens += 1
        self._pending += token
        if (cut := self._first_stop()) is not None:
            self._pending = self._pending[:cut]
            return self._finish("stop")
        if self.tokens == self._max_tokens:
            return self._finish("length")
        return self._release(_held_back(self._pending, self._stops))

    def _first_stop(self) -> int | None:
        found = [at for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        return min(found, default=None)

    def _finish(self, reason: str) -> str:
        self.finish_reason = reason
        return self._release(0)

    def _release(self, keep: int) -> str:
        at = len(self._pending) - keep
        shown, self._pending = self._pending[:at], self._pending[at:]
        return shown
