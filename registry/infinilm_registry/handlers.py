"""The HTTP calls of the contract (§3), one small function each."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from dataclasses import dataclass, field

from aiohttp import web

from infinilm_registry import commands
from infinilm_registry.addresses import Networks
from infinilm_registry.entry import Entry, Liveness, ProbeResult
from infinilm_registry.errors import (
    BodyTimeoutError,
    EncodedBodyError,
    InvalidRequestError,
    NotRegisteredError,
    StoreError,
)
from infinilm_registry.heartbeats import THRESHOLD
from infinilm_registry.listing import ListCache, ListQuery, store_marks
from infinilm_registry.membership import Membership
from infinilm_registry.metrics import CONTENT_TYPE, HEARTBEAT, CallCounts, Metrics
from infinilm_registry.probes import Prober, resolved_host_fault
from infinilm_registry.service import Sender, Service
from infinilm_registry.table import ServiceTable
from infinilm_registry.timestamps import now_text
from infinilm_registry.validation import (
    Heartbeat,
    parse_heartbeat,
    parse_json,
    parse_registration,
    parse_update,
    updated,
)
from infinilm_registry.watch import Watch

_BODY_SECONDS = 10.0


def json_response(
    body: object, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """Compact JSON."""
    text = json.dumps(body, separators=(",", ":"))
    return web.json_response(text=text, status=status, headers=headers)


@dataclass(frozen=True, slots=True)
class Handlers:
    """The calls, given what they work on."""

    table: ServiceTable
    watch: Watch
    members: Membership
    prober: Prober
    allowed: Networks
    most_services: int
    calls: CallCounts
    started: float = field(default_factory=time.monotonic)
    _lists: ListCache = field(default_factory=ListCache)

    def routes(self) -> list[web.RouteDef]:
        """Every path of the registry."""
        return [
            web.get("/health", self.health),
            web.get("/stats", self.stats),
            web.get("/metrics", self.metrics),
            web.get("/services", self.list_services),
            web.post("/services", self.register, name="register"),
            web.get("/services/{name}", self.show),
            web.put("/services/{name}", self.update, name="update"),
            web.delete("/services/{name}", self.remove, name="remove"),
            web.get("/services/{name}/health", self.probe),
            web.post("/services/{name}/heartbeat", self.heartbeat, name=HEARTBEAT),
        ]

    async def health(self, _: web.Request) -> web.Response:
        """The registry's own health."""
        entries = self.table.entries()
        reason = self.members.degraded_reason
        stale = sum(entry.liveness is Liveness.STALE for entry in entries)
        return json_response(
            {
                "status": "healthy",
                "registry": "running",
                "registered_services": len(entries),
                "healthy_services": sum(entry.is_healthy for entry in entries),
                "stale_services": stale,
                "timestamp": now_text(),
                **store_marks(self.members),
                **({"degraded_reason": reason} if reason else {}),
            }
        )

    async def stats(self, _: web.Request) -> web.Response:
        """Counts."""
        entries = self.table.entries()
        healthy, survey = sum(entry.is_healthy for entry in entries), self.table.survey()
        return json_response(
            {
                "total_services": len(entries),
                "healthy_services": healthy,
                "unhealthy_services": len(entries) - healthy,
                "status_distribution": Counter(entry.service.status for entry in entries),
                "host_distribution": Counter(entry.service.host for entry in entries),
                "uptime": round(time.monotonic() - self.started, 3),
                "timestamp": now_text(),
                "revision": self.watch.revision,
                "watchers": self.watch.waiting,
                **store_marks(self.members),
                "self_preservation": {
                    "active": survey.preserving,
                    "heartbeat_share": round(survey.share, 4),
                    "threshold": THRESHOLD,
                    "lacking_senders": survey.lacking_senders,
                    "stale_services": sum(entry.liveness is Liveness.STALE for entry in entries),
                },
            }
        )

    async def metrics(self, _: web.Request) -> web.Response:
        """The same and more for Prometheus."""
        page = Metrics(self.table, self.watch, self.members, self.calls).page()
        return web.Response(body=page.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def list_services(self, request: web.Request) -> web.Response:
        """The list, or 304 while it is still the one that the caller has."""
        query = ListQuery.of(request)
        self._check_known()
        self.table.refresh()
        if query.since is not None and not await self.watch.changed_since(query.since, query.wait):
            return web.Response(status=304, headers=self._revision_headers())
        headers = self._revision_headers()
        text = self._lists.text(query, self.table, self.watch, self.members)
        return web.json_response(text=text, headers=headers)

    def _revision_headers(self) -> dict[str, str]:
        # Weak: heartbeat times in the body move without moving the revision.
        return {"ETag": f'W/"{self.watch.revision}"', "Cache-Control": "no-cache"}

    async def register(self, request: web.Request) -> web.Response:
        """Add a service or replace the one of its name."""
        service = parse_registration(await _body(request), self.allowed)
        await self._check_resolved(service)
        service = await self.members.submit(commands.register(service, self.most_services))
        message = f"Service '{service.name}' registered successfully"
        return json_response({"message": message, **self._answer(service)}, status=201)

    async def show(self, request: web.Request) -> web.Response:
        """One service."""
        shown = self._entry(request).as_json()
        return json_response({**shown, "stale": shown["stale"] or self.members.down})

    async def update(self, request: web.Request) -> web.Response:
        """Change fields; renews the lease."""
        body, name = await _body(request), request.match_info["name"]
        changes, sender = parse_update(body), _beat(request, body).sender
        if self.allowed and ("host" in changes or "url" in changes):
            await self.members.confirm(name)
            present = self._entry(request).service
            await self._check_resolved(updated(present, changes, self.allowed))
        command = commands.update(name, changes, sender, self.allowed)
        service = await self.members.submit(command)
        message = f"Service '{name}' updated successfully"
        return json_response({"message": message, **self._answer(service)})

    async def remove(self, request: web.Request) -> web.Response:
        """Take a service out."""
        sender = _beat(request, await _body(request, optional=True)).sender
        name = request.match_info["name"]
        await self.members.submit(commands.remove(name, sender))
        return json_response({"message": f"Service '{name}' unregistered successfully"})

    async def probe(self, request: web.Request) -> web.Response:
        """Ask the service now how it is."""
        name = request.match_info["name"]
        result = await self.prober.probe_now(self._entry(request).service)
        entry = self._entry(request)
        return json_response(
            {
                "service": name,
                "health_status": "healthy" if result is ProbeResult.GOOD else "unhealthy",
                "is_healthy": entry.is_healthy,
                "last_heartbeat": entry.last_heartbeat,
                "timestamp": now_text(),
            }
        )

    async def heartbeat(self, request: web.Request) -> web.Response:
        """Renew the lease; the answer says how often to come again."""
        beat = _beat(request, await _body(request, optional=True))
        name = request.match_info["name"]
        entry = await self._sending_entry(name, beat.sender)
        self.table.renew(name)
        if beat.status not in (None, entry.service.status):
            change = {"status": beat.status}
            with contextlib.suppress(StoreError):  # the next heartbeat brings it again
                await self.members.submit(commands.update(name, change, beat.sender))
        answer = {"message": "Heartbeat received", "timestamp": now_text()}
        degraded = {"degraded": True} if self.members.degraded_reason else {}
        return json_response({**answer, **self._terms(entry.service), **degraded})

    async def _sending_entry(self, name: str, sender: Sender) -> Entry:
        """The entry that a heartbeat is for; refused only by the latest word on it."""
        entry = self.table.find(name)
        if entry is None or not sender.speaks_for(entry.service):
            await self.members.confirm(name)
            entry = self.table.find(name)
        if entry is None:
            raise NotRegisteredError(name, re_register=True)
        commands.check_sender(entry.service, sender)
        return entry

    def _entry(self, request: web.Request) -> Entry:
        name = request.match_info["name"]
        entry = self.table.find(name)
        if entry is None:
            self._check_known()
            raise NotRegisteredError(name)
        return entry

    def _check_known(self) -> None:
        """An empty list must not be given out by who has not read it yet."""
        if not self.members.known:
            raise StoreError(f"The list is not known yet: {self.members.degraded_reason}", 2)

    def _answer(self, service: Service) -> dict[str, object]:
        entry = self.table.find(service.name)
        if entry is None:
            raise NotRegisteredError(service.name)
        return {
            "service": entry.as_json(),
            "generation": service.generation,
            **self._terms(service),
        }

    def _terms(self, service: Service) -> dict[str, float]:
        terms = self.table.terms
        return {"heartbeat_interval": terms.interval(service), "ttl": terms.ttl(service)}

    async def _check_resolved(self, service: Service) -> None:
        if fault := await resolved_host_fault(service, self.allowed):
            raise InvalidRequestError([fault])


def _beat(request: web.Request, body: object) -> Heartbeat:
    return parse_heartbeat(body, request.query)


async def _body(request: web.Request, *, optional: bool = False) -> object:
    """The JSON of the body; an empty one is `{}` where it is optional."""
    if "Content-Encoding" in request.headers:
        raise EncodedBodyError("Compressed bodies are not read; send plain JSON")
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            raw = await request.read()
    except TimeoutError:
        raise BodyTimeoutError(f"The body did not arrive within {_BODY_SECONDS:g} s") from None
    return {} if optional and not raw.strip() else parse_json(raw)
