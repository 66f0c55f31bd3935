"""The merged model list of all healthy engines."""

import json
from collections.abc import Mapping
from typing import Any

from infinilm_router.router.table import ServiceTable, TableStore
from infinilm_router.utils.checks import is_number

OWNER = "infinilm"  # where an engine names none


class ModelCatalog:
    """OpenAI's model list as bytes, made anew only when the table changed."""

    def __init__(self, store: TableStore) -> None:
        self._store = store
        self._table: ServiceTable | None = None
        self._list = b""
        self._objects: dict[str, bytes] = {}

    def list(self) -> bytes:
        """The body of `GET /v1/models`: the union over healthy engines, the first one wins."""
        self._refresh()
        return self._list

    def get(self, model_id: str) -> bytes | None:
        """The object of one model, None when no healthy engine serves it."""
        self._refresh()
        return self._objects.get(model_id)

    def _refresh(self) -> None:
        table = self._store.current
        if table is self._table:
            return
        self._table = table
        self._objects = merged_models(table)
        self._list = b'{"object":"list","data":[%b]}' % b",".join(self._objects.values())


def merged_models(table: ServiceTable) -> dict[str, bytes]:
    """Model id -> its object as JSON, in the order of engines and of their lists."""
    merged: dict[str, bytes] = {}
    for engine in table.healthy_engines:
        known = {str(found["id"]): found for found in reversed(engine.models_list)}
        for model in engine.models:
            if model not in merged:
                complete = complete_model(model, known.get(model, {}))
                merged[model] = json.dumps(complete, separators=(",", ":")).encode()
    return merged


def complete_model(model: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """The object with the four fields that clients rely on; all further fields pass unchanged."""
    created = known.get("created")
    owner = known.get("owned_by")
    return {
        **known,
        "id": model,
        "object": "model",
        "created": int(created) if is_number(created) else 0,  # some engines send a float or none
        "owned_by": owner if isinstance(owner, str) and owner else OWNER,
    }
