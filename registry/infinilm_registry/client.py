"""Client of the registry's HTTP API, for scripts and tools: blocking, no retries, typed errors."""

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import requests

from infinilm_registry.access import token_problem

TOKEN_VARIABLE = "INFINILM_REGISTRY_TOKEN"  # noqa: S105 - the variable's name
Json = dict[str, Any]


class RegistryClientError(Exception):
    """A call that brought no answer to use."""


class RegistryUnreachableError(RegistryClientError):
    """No registry answers at that address, or not in time, or something else does."""


class RegistryRefusedError(RegistryClientError):
    """The registry said no.

    `status` of the answer, every fault that it listed, and the seconds to wait if it named them.
    """

    def __init__(
        self,
        status: int,
        message: str,
        faults: Sequence[Json] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.faults = tuple(faults)
        self.retry_after = retry_after


class RegistryClient:
    """One registry. Environment proxies are never used, redirects never followed.

    Args:
        base_url: such as `http://localhost:18000`.
        token: for writes; INFINILM_REGISTRY_TOKEN if not given.
        timeout: seconds for one call.

    Raises:
        ValueError: the token cannot be sent.
    """

    def __init__(self, base_url: str, *, token: str | None = None, timeout: float = 5.0) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeout = timeout
        self._session = requests.Session()
        self._session.trust_env = False
        if token := token or os.environ.get(TOKEN_VARIABLE):
            if problem := token_problem(token):
                raise ValueError(f"the registry token ({TOKEN_VARIABLE}) {problem}")
            self._session.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the connections."""
        self._session.close()

    def health(self) -> Json:
        """The registry's own health."""
        return self._call("GET", "/health")

    def stats(self) -> Json:
        """Counts."""
        return self._call("GET", "/stats")

    def services(self, *, status: str | None = None, healthy: bool | None = None) -> list[Json]:
        """All services, or those of a status or health."""
        return list(self._call("GET", "/services", query=_filters(status, healthy))["services"])

    def watch(self, since: int, wait: float = 30.0, *, healthy: bool | None = None) -> Json | None:
        """`{services, revision, ...}` once the list is not that of `since`; None after `wait` s."""
        query = {**_filters(None, healthy), "since": str(since), "wait": str(wait)}
        response = self._send("GET", "/services", query=query, timeout=wait + self._timeout)
        return None if response.status_code == 304 else _answer(response)

    def service(self, name: str) -> Json:
        """One service."""
        return self._call("GET", _path(name))

    def register(self, service: Mapping[str, object]) -> Json:
        """Register; `{message, service, generation, heartbeat_interval, ttl}`."""
        return self._call("POST", "/services", body=service)

    def update(
        self,
        name: str,
        changes: Mapping[str, object],
        instance_id: str | None = None,
        generation: int | None = None,
    ) -> Json:
        """Change fields of a service; only if it is still that instance's and generation's."""
        query = _sender(instance_id, generation)
        return self._call("PUT", _path(name), body=changes, query=query)

    def unregister(
        self, name: str, instance_id: str | None = None, generation: int | None = None
    ) -> Json:
        """Remove a service; only if it is still that instance's and generation's."""
        return self._call("DELETE", _path(name), query=_sender(instance_id, generation))

    def probe(self, name: str) -> Json:
        """Have the registry ask the service now how it is."""
        return self._call("GET", _path(name) + "/health")

    def heartbeat(
        self,
        name: str,
        status: str | None = None,
        instance_id: str | None = None,
        generation: int | None = None,
    ) -> Json:
        """Renew the lease; a RegistryRefusedError of status 404 asks to register again."""
        body = {} if status is None else {"status": status}
        query = _sender(instance_id, generation)
        return self._call("POST", _path(name) + "/heartbeat", body=body, query=query)

    def _call(self, method: str, path: str, **parts: Any) -> Json:
        return _answer(self._send(method, path, **parts))

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None = None,
        query: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> requests.Response:
        url = self.base_url + path
        try:
            return self._session.request(
                method,
                url,
                json=body,
                params=query,
                timeout=timeout or self._timeout,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            message = f"no answer from the registry at {self.base_url}: {error}"
            raise RegistryUnreachableError(message) from error


def _path(name: str) -> str:
    return "/services/" + quote(name, safe="")


def _sender(instance_id: str | None, generation: int | None) -> dict[str, str]:
    claims = {"instance_id": instance_id, "generation": generation}
    return {key: str(value) for key, value in claims.items() if value is not None}


def _filters(status: str | None, healthy: bool | None) -> dict[str, str]:
    query = {} if status is None else {"status": status}
    return query if healthy is None else {**query, "healthy": str(healthy).lower()}


def _answer(response: requests.Response) -> Json:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        message = (
            f"{response.url} answered {response.status_code} without JSON: is this a registry?"
        )
        raise RegistryUnreachableError(message)
    if response.ok:
        return body
    retry_after = response.headers.get("Retry-After", "")
    raise RegistryRefusedError(
        response.status_code,
        str(body.get("error", response.reason)),
        body.get("errors", ()),
        float(retry_after) if retry_after.isdigit() else None,
    )
