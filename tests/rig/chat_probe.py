"""Ask a live endpoint for chat answers and note when each part of an answer came."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

Json = dict[str, Any]


@dataclass
class Asked:
    """One request and what came of it; times are `time.monotonic` seconds.

    `first` is when the first text came (of an answer in one piece: when all of it came);
    `status` is 0 where there was no answer at all; `fault` is empty if the answer is whole.
    """

    sent: float
    first: float = 0.0
    end: float = 0.0
    status: int = 0
    text: str = ""
    fault: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200 and not self.fault

    @property
    def seconds(self) -> float:
        return self.end - self.sent

    def see(self, text: str | None) -> None:
        if text:
            self.first = self.first or time.monotonic()
            self.text += text


def _error_text(body: str) -> str:
    """The message of an error body, old shape (a string) or OpenAI's (an object)."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return body.strip()[:200]
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _see_chunk(asked: Asked, chunk: Json) -> bool:
    """Note one chunk; true if it says that the answer is over."""
    if chunk.get("error"):
        asked.fault = _error_text(json.dumps(chunk))
        return True
    over = False
    for choice in chunk.get("choices") or []:
        asked.see((choice.get("delta") or {}).get("content"))
        over = over or choice.get("finish_reason") is not None
    return over


async def _read_stream(asked: Asked, response: aiohttp.ClientResponse) -> None:
    over = False
    async for line in response.content:
        data = line.strip().removeprefix(b"data:").strip()
        if data == b"[DONE]":
            over = True
        elif line.startswith(b"data:"):
            over = _see_chunk(asked, json.loads(data)) or over
    if not over and not asked.fault:
        asked.fault = "the stream ended without a finish_reason and without [DONE]"


async def _read_whole(asked: Asked, response: aiohttp.ClientResponse) -> None:
    body = await response.json(content_type=None)
    asked.see(body["choices"][0]["message"]["content"])


async def ask(session: aiohttp.ClientSession, url: str, body: Mapping[str, Any]) -> Asked:
    """Send one chat request; whatever goes wrong is told in the result, never raised."""
    asked = Asked(sent=time.monotonic())
    try:
        async with session.post(url, json=body) as response:
            asked.status = response.status
            if response.status != 200:
                asked.fault = _error_text(await response.text())
            elif body.get("stream"):
                await _read_stream(asked, response)
            else:
                await _read_whole(asked, response)
    except TimeoutError:
        asked.fault = "no answer in time"
    except (aiohttp.ClientError, ValueError, KeyError, IndexError, TypeError) as error:
        asked.fault = f"{type(error).__name__}: {error}"
    asked.end = time.monotonic()
    asked.first = asked.first or asked.end
    return asked


def chat_url(base: str) -> str:
    """The chat endpoint under a base address given with or without `/v1`."""
    return f"{base.rstrip('/')}/chat/completions"


async def first_model(session: aiohttp.ClientSession, base: str) -> str | None:
    """The first model that the endpoint lists; None if it does not tell."""
    try:
        async with session.get(f"{base.rstrip('/')}/models") as response:
            listed = await response.json(content_type=None)
        return str(listed["data"][0]["id"])
    except (TimeoutError, aiohttp.ClientError, ValueError, KeyError, IndexError, TypeError):
        return None


async def pick_model(session: aiohttp.ClientSession, base: str, wanted: str | None) -> str:
    """The model asked for, else the first one listed, else the name that older tools sent."""
    return wanted or await first_model(session, base) or "test-model"


def session_with_timeout(seconds: float) -> aiohttp.ClientSession:
    """A session with as many connections as there are requests, 10 s to connect."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=seconds, connect=min(10.0, seconds)),
    )
