import pytest

from infinilm_router.router.health import RiseFall


def verdicts(results: str, fall: int = 3, rise: int = 2) -> str:
    """`+` good, `-` bad, `!` conclusive -> after each result `U` up or `D` down."""
    counter = RiseFall(fall, rise)
    after = ""
    for result in results:
        before = counter.up
        changed = counter.count(good=result == "+", conclusive=result == "!")
        assert changed == (counter.up != before)
        after += "U" if counter.up else "D"
    return after


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ("+-+--+---", "UUUUUUUUD"),
        ("+---+-++", "UUUDDDDU"),
        ("-", "D"),
        ("-++", "DDU"),
        ("+" + "-+" * 30, "U" * 61),
        ("+!++", "UDDU"),
        ("+--!", "UUUD"),
        ("!!+", "DDD"),
    ],
)
def test_three_bad_results_in_a_row_take_out_and_two_good_ones_bring_back(
    results: str, expected: str
) -> None:
    assert verdicts(results) == expected


def test_results_against_the_verdict_make_probes_come_faster() -> None:
    counter = RiseFall(3, 2)
    changing = []
    for result in "+--+---+":
        counter.count(good=result == "+")
        changing.append(counter.changing)
    assert changing == [False, True, True, False, True, True, False, True]
