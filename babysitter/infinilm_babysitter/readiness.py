"""Is the engine ready? It is when the listener on its port is its own and it lists its models."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

from infinilm_babysitter import proctree, sockets
from infinilm_babysitter.door import Door

Model = Mapping[str, object]

MODEL_PATHS = ("/v1/models", "/models")
LOADING = frozenset({429, 502, 503, 504})
"""Answers that say "not yet" rather than "no such thing"."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Serves these models: objects as the engine lists them, at least with `id`."""

    models: tuple[Model, ...]


@dataclass(frozen=True, slots=True)
class NotReady:
    """Not now, for this `reason`."""

    reason: str
    refused: bool = False
    """Nobody listens on the port."""
    unavailable: bool = False
    """It says itself, by a health call that means it, that it cannot serve."""
    answered: bool = False
    """It did say something in time."""
    unseen: bool = False
    """We could not even look, for want of a descriptor perhaps: that says nothing of it."""

    @property
    def broken(self) -> bool:
        """If this lasts in an engine that was ready, it needs a restart."""
        return self.refused or self.unavailable


@dataclass(frozen=True, slots=True)
class Foreign:
    """Somebody else listens on the engine's port."""

    reason: str


Finding = Ready | NotReady | Foreign


def port_holder(port: int, own_root: int | None) -> str:
    """Who listens on `port` outside of the tree below `own_root`, in words; empty if nobody does.

    A listener may open, close or change hands between two looks at /proc; only one that is foreign
    twice in a row counts.
    """
    if not (suspects := _foreign(port, own_root)):
        return ""
    lasting = suspects & _foreign(port, own_root)
    if not lasting:
        return ""
    pid = next(filter(None, (sockets.owner(each, proctree.snapshot()) for each in lasting)), None)
    who = f"pid {pid} ({proctree.command_name(pid)})" if pid else "a process of another user"
    return f"port {port} is held by {who}"


def _foreign(port: int, own_root: int | None) -> set[int]:
    inodes = {each.inode for each in sockets.listeners(port)}
    if not inodes or own_root is None:
        return inodes
    own = [process.pid for process in proctree.descendants(own_root)]
    return {inode for inode in inodes if sockets.owner(inode, own) is None}


class Readiness:
    """Looks at an engine on one port."""

    def __init__(
        self,
        door: Door,
        *,
        configured_models: tuple[str, ...] = (),
        check_listener: bool = True,
    ) -> None:
        self._door = door
        self._configured = configured_models
        self._check_listener = check_listener

    async def check(self, tree_root: int, health_path: str | None = None) -> Finding:
        """One look at the engine whose processes are below `tree_root`."""
        try:
            return await self._look(tree_root, health_path)
        except OSError as error:
            return NotReady(f"cannot be looked at: {error}", unseen=True)

    async def _look(self, tree_root: int, health_path: str | None) -> Finding:
        port = self._door.port
        if not await self._door.is_open():
            return NotReady(f"port {port} is not open", refused=True)
        if self._check_listener and (
            holder := await asyncio.to_thread(port_holder, port, tree_root)
        ):
            return Foreign(holder)
        if health_path and (await self._door.get(health_path))[0] == 503:
            return NotReady(f"{health_path} answers 503", unavailable=True, answered=True)
        return await self._models()

    async def _models(self) -> Finding:
        answers: list[str] = []
        for path in MODEL_PATHS:
            status, models = await self._list(path)
            if models:
                return Ready(models)
            if status is None or status in LOADING:
                answered = status is not None
                return NotReady(f"{path} answers {status or 'nothing'}", answered=answered)
            answers.append(f"{path}: {status}")
        if self._configured:
            return Ready(tuple({"id": model, "object": "model"} for model in self._configured))
        return NotReady(
            f"lists no models ({', '.join(answers)}); if it needs a key set api_key_file, "
            "if it has no models list set models",
            answered=True,
        )

    async def _list(self, path: str) -> tuple[int | None, tuple[Model, ...]]:
        """Status (None: no answer) and models, empty if the answer is no list of any."""
        status, body = await self._door.get(path)
        return status, _parse_models(body) if status == 200 else ()


def _parse_models(body: bytes) -> tuple[Model, ...]:
    """The objects of an OpenAI models list that have an id; empty if it is none."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return ()
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        return ()
    models = (each for each in data if isinstance(each, dict))
    return tuple(each for each in models if isinstance(each.get("id"), str) and each["id"])


def model_ids(models: tuple[Model, ...]) -> list[str]:
    """The ids, in order, each once."""
    return list(dict.fromkeys(str(model["id"]) for model in models))
