"""A small client of the router, for scripts: plain calls, typed errors, no SDK needed."""

import json
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import requests
import urllib3

log = logging.getLogger(__name__)

Json = dict[str, Any]
Message = Mapping[str, Any]

DEFAULT_URL = "http://localhost:8080"
_CONNECT_SECONDS = 5.0
_READ_BYTES = 65536


class ClientError(Exception):
    """What can go wrong in a call; its subclasses say what, its text says what to do."""


class UnreachableError(ClientError):
    """No answer: the router cannot be connected to, or says nothing for too long."""


class RefusedError(ClientError):
    """An answer with an error status.

    `code` is the router's or the engine's name for it ("" if it gives none), `retry_after` the
    seconds after which to try again, where the answer tells.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: float | None) -> None:
        super().__init__(f"{status} {code or 'error'}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after


class StreamError(ClientError):
    """A streamed answer that began and then broke: what was received is not all of it."""


def _error_fields(body: bytes) -> tuple[str, str]:
    """Code and message of an error body; any engine's shape will do."""
    text = body.decode("utf-8", "replace").strip()
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return "", text or "the answer has no text"
    if not isinstance(error, dict):
        return "", str(error)
    return str(error.get("code") or ""), str(error.get("message") or error)


def _seconds(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:  # a date: allowed by HTTP, sent by no engine we know
        return None


def _raise_for_status(response: requests.Response) -> None:
    if response.ok and not response.is_redirect:
        return
    code, message = _error_fields(response.content)
    retry_after = _seconds(response.headers.get("Retry-After"))
    raise RefusedError(response.status_code, code, message, retry_after)


def _object(response: requests.Response) -> Json:
    try:
        body = response.json()
    except requests.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise RefusedError(
            response.status_code, "", f"{response.url} did not answer with a JSON object", None
        )
    return body


def _pieces(response: requests.Response) -> Iterator[bytes]:
    """The body as it arrives, whatever the engine's framing; requests would wait for more."""
    try:
        while piece := response.raw.read1(_READ_BYTES, decode_content=True):
            yield piece
    except urllib3.exceptions.HTTPError as error:
        raise StreamError(f"the answer was cut off: {error}") from error


def _event_data(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The `data` of each server-sent event; comments and other fields are passed over."""
    buffer = b""
    data: list[bytes] = []
    for piece in pieces:
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            field = line.rstrip(b"\r")
            if field.startswith(b"data:"):
                data.append(field[5:].removeprefix(b" "))
            elif not field and data:
                yield b"\n".join(data)
                data = []


def _chunk(data: bytes) -> Json:
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise StreamError(f"an event is not JSON: {data[:80]!r}") from error
    if not isinstance(chunk, dict):
        raise StreamError(f"an event is not a JSON object: {data[:80]!r}")
    if chunk.get("error"):
        code, message = _error_fields(data)
        raise StreamError(f"{code or 'error'}: {message}")
    return chunk


class RouterClient:
    """Calls one router; usable as a context manager, not from several threads at once.

    Environment proxies are not used and redirects not followed: the router is meant, only it.
    Methods raise `UnreachableError` or `RefusedError` where there is no good answer.
    """

    def __init__(
        self, router_url: str = DEFAULT_URL, *, api_key: str | None = None, timeout: float = 600.0
    ) -> None:
        """Make a client; `timeout` is the longest silence in seconds that is waited through."""
        self.router_url = router_url.rstrip("/")
        self._timeout = (min(_CONNECT_SECONDS, timeout), timeout)
        self._session = requests.Session()
        self._session.trust_env = False
        if api_key:
            self._session.headers["Authorization"] = f"Bearer {api_key}"

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
        """Close all connections."""
        self._session.close()

    def health(self) -> Json:
        """`GET /health`: the router's state and `healthy_services`, as "2/3"."""
        return self._get("/health")

    def status(self) -> Json:
        """`GET /status`: the same facts under the older name."""
        return self._get("/status")

    def stats(self) -> Json:
        """`GET /stats`: totals, and what the router knows of every service."""
        return self._get("/stats")

    def services(self) -> list[Json]:
        """`GET /services`: every engine with its models."""
        services: list[Json] = self._get("/services").get("services", [])
        return services

    def models(self) -> list[Json]:
        """`GET /v1/models`: the models of all healthy engines together."""
        models: list[Json] = self._get("/v1/models").get("data", [])
        return models

    def model(self, model: str) -> Json:
        """`GET /v1/models/{id}`: one of them; the id may hold slashes."""
        return self._get(f"/v1/models/{quote(model, safe='')}")

    def chat(self, messages: Sequence[Message], model: str | None = None, **options: Any) -> Json:
        """A whole chat completion; `options` are more fields of the body, such as max_tokens."""
        body = self._chat_body(messages, model, options)
        with self._send("POST", "/v1/chat/completions", body) as response:
            return _object(response)

    def chat_stream(
        self, messages: Sequence[Message], model: str | None = None, **options: Any
    ) -> Generator[Json, None, None]:
        """The chunks of a streamed chat completion, each as soon as it arrives.

        Closing the generator early leaves the stream, and the engine stops generating.

        Raises:
            StreamError: the stream broke, or said so itself.
        """
        body = self._chat_body(messages, model, {**options, "stream": True})
        with self._send("POST", "/v1/chat/completions", body, stream=True) as response:
            for data in _event_data(_pieces(response)):
                if data == b"[DONE]":
                    return
                yield _chunk(data)

    # The names of the earlier client. They log a failure and answer None or False, as before.

    def check_router_health(self) -> bool:
        """Whether the router answers its health call."""
        return self._or_none(self.health) is not None

    def get_router_stats(self) -> Json | None:
        """As `stats`."""
        return self._or_none(self.stats)

    def get_models(self) -> Json | None:
        """The whole answer of `GET /models`: `{"object": "list", "data": [...]}`."""
        return self._or_none(lambda: self._get("/models"))

    def chat_completions(
        self, messages: Sequence[Message], model: str | None = None, **options: Any
    ) -> Json | None:
        """As `chat`."""
        return self._or_none(lambda: self.chat(messages, model, **options))

    def test_router_connection(self) -> bool:
        """Whether the router lists its models."""
        return self.get_models() is not None

    @staticmethod
    def _or_none(call: Callable[[], Json]) -> Json | None:
        try:
            return call()
        except ClientError as error:
            log.warning("router call failed error=%s", error)
            return None

    @staticmethod
    def _chat_body(
        messages: Sequence[Message], model: str | None, options: Mapping[str, Any]
    ) -> Json:
        named = {} if model is None else {"model": model}
        return {**named, "messages": list(messages), **options}

    def _get(self, path: str) -> Json:
        with self._send("GET", path) as response:
            return _object(response)

    def _send(
        self, method: str, path: str, body: Json | None = None, *, stream: bool = False
    ) -> requests.Response:
        url = self.router_url + path
        try:
            response = self._session.request(
                method, url, json=body, stream=stream, timeout=self._timeout, allow_redirects=False
            )
            _raise_for_status(response)
        except requests.RequestException as error:
            raise UnreachableError(
                f"no answer from {url}: {error}; is the router running, is the address right?"
            ) from error
        return response
