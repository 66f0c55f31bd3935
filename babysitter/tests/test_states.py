import itertools

import pytest

from infinilm_babysitter.states import MOVES, EngineState, IllegalMoveError, State


def test_every_state_has_its_line_in_the_table() -> None:
    assert set(MOVES) == set(State)


def test_every_state_can_be_reached_and_left_for_stopped() -> None:
    def reachable(start: State) -> set[State]:
        found, unseen = set(), [start]
        while unseen:
            new = MOVES[unseen.pop()] - found
            found |= new
            unseen += new
        return found

    assert reachable(State.STOPPED) == set(State)
    assert all(State.STOPPED in reachable(state) for state in State)


@pytest.mark.parametrize(
    ("old", "new"),
    [pair for pair in itertools.product(State, State) if pair[1] not in MOVES[pair[0]]],
)
def test_a_move_that_is_not_in_the_table_is_refused(old: State, new: State) -> None:
    state = EngineState(lambda: 0.0)
    state.state = old
    with pytest.raises(IllegalMoveError):
        state.change_state(new)
    assert state.state is old


def test_a_move_starts_the_clock_of_its_state_and_a_note_does_not() -> None:
    now = [100.0]
    state = EngineState(lambda: now[0])
    now[0] = 110.0
    state.change_state(State.STARTING, "loading")
    now[0] = 113.0
    state.note("still loading")
    assert (state.seconds, state.detail) == (3.0, "still loading")
