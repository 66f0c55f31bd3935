"""What etcd holds under our prefix, as far as we have been told. Pure.

Three sources tell it: whole reads, the watch, and the answers to our own writes. They overtake one
another, and a watch may lose a message, so each fact carries its revision and the later one stands.
"""

from collections.abc import Iterable

from infinilm_registry.etcd.wire import Change, KeyValue


class Mirror:
    """Keys by name. `seen` is the latest revision that a whole read or the watch has told of."""

    def __init__(self) -> None:
        self.seen = 0
        self._kept: dict[str, KeyValue] = {}
        self._gone: dict[str, int] = {}  # at which revision, of those that left since the last read
        self._read_at = 0

    def get(self, key: str) -> KeyValue | None:
        """The key, if it is there."""
        return self._kept.get(key)

    def take(self, changes: Iterable[Change]) -> list[Change]:
        """Single changes, in any order; those that are news."""
        news = []
        for change in changes:
            if change.revision > self._known_at(change.key):
                if change.now is not None or change.key in self._kept:
                    news.append(change)
                self._set(change)
        return news

    def take_watched(self, changes: Iterable[Change], revision: int) -> list[Change]:
        """Changes that the watch told, up to `revision`; those that are news."""
        self.seen = max(self.seen, revision)
        return self.take(changes)

    def take_all(self, keys: Iterable[KeyValue], revision: int, asked: int) -> list[Change]:
        """A whole read at `revision`: what else is known and later stays; what differs.

        `asked` is what `seen` was when the read began. A read older than that can only come from
        an etcd that has lost its data and begun anew: nothing known before counts then.
        """
        found = {item.key: item for item in keys}
        before = self._kept
        if revision < asked:
            self.seen, self._gone = revision, {}
        else:
            self._gone = {key: at for key, at in self._gone.items() if at > revision}
            found.update(
                {key: kept for key, kept in before.items() if kept.mod_revision > revision}
            )
        self._kept = {key: item for key, item in found.items() if key not in self._gone}
        self.seen, self._read_at = max(self.seen, revision), revision
        keys_of_both = before.keys() | self._kept.keys()
        differing = [key for key in keys_of_both if before.get(key) != self._kept.get(key)]
        return [Change(key, revision, self._kept.get(key)) for key in differing]

    def _known_at(self, key: str) -> int:
        """Until which revision we know of a key: whole reads speak of all keys."""
        kept = self._kept.get(key)
        return max(self._read_at, kept.mod_revision if kept else self._gone.get(key, 0))

    def _set(self, change: Change) -> None:
        if change.now is None:
            self._kept.pop(change.key, None)
            self._gone[change.key] = change.revision
        else:
            self._gone.pop(change.key, None)
            self._kept[change.key] = change.now
