"""The list's revision where several registries have one list: the same list, the same number."""

from infinilm_registry.etcd.picture import OPINION_BITS, Picture
from infinilm_registry.watch import Watch


class SharedWatch(Watch):
    """Numbers the list by etcd's revision, so that all registries agree and numbers only grow.

    What a registry thinks beyond what etcd says (its probes, who is stale) is in the low bits, as
    a checksum: so two registries have one number only for one list.
    """

    def __init__(self) -> None:
        super().__init__(0)
        self._picture: Picture | None = None
        self._outdated = True

    def follow(self, picture: Picture) -> None:
        """Number the lists of this picture."""
        self._picture = picture

    @property
    def revision(self) -> int:
        """The number of the list as it is; counted only when somebody asks."""
        if self._outdated and self._picture is not None:
            self._outdated = False
            self._revision = (self._picture.changed_at << OPINION_BITS) + self._picture.opinion()
        return self._revision

    def advance(self) -> None:
        """The list is not what it was."""
        self._outdated = True
        super().advance()
