"""The pure part: tokens, stop strings and lengths."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from infinilm_babysitter.mock_engine.prompts import Prompt
from infinilm_babysitter.mock_engine.text import (
    Generation,
    answer_tokens,
    count_tokens,
    fingerprint,
    tokenize,
)
from infinilm_babysitter.mock_engine.vectors import embed

# Few different characters, so that stop strings are met often, also across tokens.
short_texts = st.text(alphabet="ab ,", max_size=40)
stop_strings = st.lists(st.text(alphabet="ab ,", min_size=1, max_size=5), max_size=3)


def run_to_end(generation: Generation) -> list[str]:
    shown = []
    while generation.finish_reason is None:
        shown.append(generation.step())
    return shown


def cut_at_first(text: str, stops: list[str]) -> str:
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


@given(st.text())
def test_tokens_joined_give_the_text_again(text: str) -> None:
    tokens = tokenize(text)
    assert "".join(tokens) == text
    assert count_tokens(text) == len(tokens)
    assert all(tokens)


@given(short_texts, stop_strings)
def test_what_is_shown_ends_right_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    # Tokens of one character: the stop string is seen as soon as its last character is there.
    generation = Generation(iter(text), None, stops)
    shown = "".join(run_to_end(generation))
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    seen = text[: min(ends, default=len(text))]
    assert shown == cut_at_first(seen, stops)
    assert generation.finish_reason == "stop"


@given(short_texts, stop_strings)
def test_text_shown_early_is_never_taken_back(text: str, stops: list[str]) -> None:
    generation = Generation(iter(tokenize(text)), None, stops)
    shown = "".join(run_to_end(generation))
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)


@given(st.integers(min_value=1, max_value=300))
def test_an_endless_answer_has_exactly_max_tokens(max_tokens: int) -> None:
    generation = Generation(answer_tokens("Hello there.", b"seed", endless=True), max_tokens)
    text = "".join(run_to_end(generation))
    assert generation.tokens == max_tokens
    assert generation.finish_reason == "length"
    assert text == "".join(
        itertools.islice(answer_tokens("Hello there.", b"seed", endless=True), max_tokens)
    )


def test_a_natural_end_is_a_stop() -> None:
    generation = Generation(answer_tokens("Hello there.", b"seed", endless=False), None)
    assert "".join(run_to_end(generation)) == "Hello there."
    assert (generation.finish_reason, generation.tokens) == ("stop", 3)


def test_a_fingerprint_depends_on_where_a_part_ends() -> None:
    assert fingerprint(b"ab", b"c") != fingerprint(b"a", b"bc")


def test_texts_that_share_words_have_closer_vectors() -> None:
    def vector(text: str) -> list[float]:
        return embed(Prompt(text=text, tokens=1, facts="", identity=b"x"), 256)

    def likeness(one: str, other: str) -> float:
        return sum(a * b for a, b in zip(vector(one), vector(other), strict=True))

    base = "the cat sat on the mat"
    assert likeness(base, base) > 0.999
    assert likeness(base, "the cat sat on the chair") > likeness(base, "profit grew by a third")
