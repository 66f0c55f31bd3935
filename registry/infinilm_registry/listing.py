"""The list call: what is asked, and one rendered answer for all who ask the same."""

import json
import math
import time
from dataclasses import dataclass, field

from aiohttp import web

from infinilm_registry.entry import Entry
from infinilm_registry.errors import Fault, InvalidRequestError
from infinilm_registry.membership import Membership
from infinilm_registry.table import ServiceTable
from infinilm_registry.timestamps import now_text
from infinilm_registry.watch import Watch

_LONGEST_WAIT = 60.0
_CACHE_SECONDS = 1.0
_MOST_CACHED = 16


@dataclass(frozen=True, slots=True)
class ListQuery:
    """`?status= &healthy= &since= &wait=` of a list call, and its If-None-Match."""

    status: str | None
    healthy: bool | None
    since: int | None
    wait: float

    @classmethod
    def of(cls, request: web.Request) -> "ListQuery":
        """The checked query; InvalidRequestError with every fault."""
        query, faults = request.query, []
        since, wait = query.get("since"), query.get("wait", "0")
        if since is not None and not (since.isascii() and since.isdigit() and len(since) < 20):
            faults.append(Fault("since", since, "must be a revision: a whole number"))
        if not _is_wait(wait):
            faults.append(Fault("wait", wait, "must be a number of seconds, 0 or more"))
        if faults:
            raise InvalidRequestError(faults)
        known = _known_revision(request) if since is None else int(since)
        healthy = query["healthy"].lower() == "true" if "healthy" in query else None
        return cls(query.get("status"), healthy, known, min(float(wait), _LONGEST_WAIT))

    def takes(self, entry: Entry) -> bool:
        """Whether the entry belongs into the list."""
        return (self.status is None or entry.service.status == self.status) and (
            self.healthy is None or entry.is_healthy == self.healthy
        )


def _is_wait(text: str) -> bool:
    try:
        return float(text) >= 0 and math.isfinite(float(text))
    except ValueError:
        return False


def _known_revision(request: web.Request) -> int | None:
    for tag in request.headers.get("If-None-Match", "").split(","):
        revision = tag.strip().removeprefix("W/").strip('"')
        if revision.isascii() and revision.isdigit() and len(revision) < 20:
            return int(revision)
    return None


def store_marks(members: Membership) -> dict[str, bool]:
    """What every answer from memory says of the store behind it.

    `degraded`: something is wrong with it. `stale`: it is down, so this may not be the last word.
    """
    return {"degraded": members.degraded_reason is not None, "stale": members.down}


@dataclass(slots=True)
class ListCache:
    """Rendered lists of the table's present version: a thousand woken watchers share one."""

    _version: int = -1
    _rendered_at: float = 0.0
    _texts: dict[tuple[object, ...], str] = field(default_factory=dict)

    def text(self, query: ListQuery, table: ServiceTable, watch: Watch, members: Membership) -> str:
        """The answer's JSON."""
        # The number first: a list newer than its number wakes once more, an older one stays.
        revision = watch.revision
        entries, marks = table.entries(), store_marks(members)
        self._drop_outdated(table.version)
        key = (query.status, query.healthy, revision, *marks.values())
        if key not in self._texts:
            services = [entry.as_json() for entry in entries if query.takes(entry)]
            body = {
                "services": services,
                "total": len(services),
                "revision": revision,
                "timestamp": now_text(),
                **marks,
            }
            self._texts[key] = json.dumps(body, separators=(",", ":"))
        return self._texts[key]

    def _drop_outdated(self, version: int) -> None:
        now = time.monotonic()
        old = now - self._rendered_at > _CACHE_SECONDS
        if version != self._version or old or len(self._texts) >= _MOST_CACHED:
            self._texts.clear()
            self._version, self._rendered_at = version, now
