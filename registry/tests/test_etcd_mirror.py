from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infinilm_registry.etcd.mirror import Mirror
from infinilm_registry.etcd.wire import Change, KeyValue

NAMES = "abc"
KEYS = st.sampled_from(NAMES)


def kept(key: str, revision: int, value: bytes = b"") -> KeyValue:
    return KeyValue(key, value, revision, revision)


def stored(key: str, revision: int, value: bytes = b"") -> Change:
    return Change(key, revision, kept(key, revision, value))


def gone(key: str, revision: int) -> Change:
    return Change(key, revision, None)


def test_what_is_told_twice_or_late_is_no_news() -> None:
    mirror = Mirror()
    assert mirror.take([stored("a", 5)]) == [stored("a", 5)]
    assert mirror.take_watched([stored("a", 4), stored("a", 5)], 5) == []
    assert mirror.take([gone("a", 6)]) == [gone("a", 6)]
    assert mirror.take_watched([stored("a", 5), gone("a", 6)], 6) == []
    assert mirror.get("a") is None


def test_a_whole_read_repairs_what_the_watch_has_lost() -> None:
    mirror = Mirror()
    mirror.take_all([kept("a", 1), kept("b", 2)], 2, 0)
    mirror.take_watched([stored("c", 5)], 5)  # it lost: a removed at 3, b changed at 4
    differing = mirror.take_all([kept("b", 4), kept("c", 5)], 5, 5)
    differing.sort(key=lambda change: change.key)
    assert differing == [gone("a", 5), Change("b", 5, kept("b", 4))]
    assert mirror.get("b") == kept("b", 4)


def test_what_came_after_a_whole_read_stays() -> None:
    mirror = Mirror()
    mirror.take_all([kept("a", 1), kept("b", 2)], 2, 0)
    mirror.take([gone("a", 7), stored("c", 8)])  # our own writes, while the read was on its way
    assert mirror.take_all([kept("a", 1), kept("b", 2)], 6, 2) == []
    assert mirror.get("a") is None
    assert mirror.get("c") == kept("c", 8)


def test_a_watch_that_lags_behind_a_whole_read_brings_nothing_back() -> None:
    mirror = Mirror()
    mirror.take_all([], 60, 0)
    assert mirror.take_watched([stored("a", 50)], 50) == []
    assert mirror.take_watched([gone("a", 55)], 55) == []
    assert mirror.get("a") is None


def test_a_watch_that_overtakes_a_whole_read_is_no_new_beginning() -> None:
    mirror = Mirror()
    mirror.take_all([kept("a", 1)], 1, 0)
    mirror.take_watched([stored("b", 9)], 9)
    assert mirror.take_all([kept("a", 1)], 8, 1) == []  # asked when 1 was seen, answered at 8
    assert mirror.get("b") == kept("b", 9)


def test_an_etcd_that_lost_its_data_replaces_all() -> None:
    mirror = Mirror()
    mirror.take_all([kept("a", 100), kept("b", 200)], 200, 0)
    assert mirror.take_all([kept("c", 3)], 3, 200) != []
    assert [mirror.get(key) for key in "abc"] == [None, None, kept("c", 3)]
    assert mirror.seen == 3
    assert mirror.take_watched([stored("a", 4)], 4) == [stored("a", 4)]


class Views(RuleBasedStateMachine):
    """etcd, and a mirror that the watch reaches late or not at all and own answers reach early."""

    def __init__(self) -> None:
        super().__init__()
        self.mirror = Mirror()
        self.history: list[Change] = []  # the change at revision n stands at n - 1
        self.watched = 0
        self.told_gone: dict[str, int] = {}

    def keys_at(self, revision: int) -> dict[str, KeyValue]:
        keys: dict[str, KeyValue] = {}
        for change in self.history[:revision]:
            keys.pop(change.key, None)
            if change.now:
                keys[change.key] = change.now
        return keys

    def tell(self, change: Change) -> None:
        if change.now is None:
            self.told_gone[change.key] = max(change.revision, self.told_gone.get(change.key, 0))

    @rule(key=KEYS, remove=st.booleans(), own=st.booleans())
    def change(self, key: str, remove: bool, own: bool) -> None:
        revision = len(self.history) + 1
        self.history.append(gone(key, revision) if remove else stored(key, revision))
        if own:
            self.mirror.take(self.history[-1:])
            self.tell(self.history[-1])

    @precondition(lambda self: self.watched < len(self.history))
    @rule(lost=st.booleans())
    def watch(self, lost: bool) -> None:
        change = self.history[self.watched]
        self.watched += 1
        if not lost:
            self.mirror.take_watched([change], self.watched)
            self.tell(change)

    @rule(late=st.integers(0, 4))
    def read(self, late: int) -> None:
        """Answered at a revision that others have passed meanwhile."""
        asked = self.mirror.seen
        at = max(asked, len(self.history) - late)
        self.mirror.take_all(self.keys_at(at).values(), at, asked)

    @invariant()
    def nothing_comes_back(self) -> None:
        for key, since in self.told_gone.items():
            shown = self.mirror.get(key)
            assert shown is None or shown.mod_revision > since

    def teardown(self) -> None:
        self.mirror.take_all(self.keys_at(len(self.history)).values(), len(self.history), 0)
        present = self.keys_at(len(self.history))
        assert {key: self.mirror.get(key) for key in NAMES} == {k: present.get(k) for k in NAMES}


TestViews = Views.TestCase
