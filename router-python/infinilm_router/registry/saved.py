"""The last good list of services on disk, for a router that starts while the registry is down."""

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from infinilm_router.registry.entries import registry_entry, service_from_registry
from infinilm_router.router.table import Service
from infinilm_router.utils.checks import UnusableError, read_json

log = logging.getLogger(__name__)


class SavedList:
    """One file. Faults of the disk are logged and change nothing else."""

    def __init__(self, folder: Path, port: int) -> None:
        self.path = folder / f"router_last_services_{port}.json"
        self._written: list[dict[str, object]] | None = None
        self._failing = False

    def load(self) -> tuple[Service, ...]:
        """The saved services; none where there is no usable file."""
        if not self.path.exists():
            return ()
        try:
            content = read_json(self.path)
            entries = content.get("services") if isinstance(content, dict) else None
            if not isinstance(entries, list):
                raise UnusableError("it has no list of services")  # noqa: TRY301 - one way to log
            return tuple(service_from_registry(entry) for entry in entries)
        except UnusableError as error:
            log.warning("saved list ignored file=%s reason=%r", self.path, str(error))
            return ()

    def save(self, services: Sequence[Service]) -> None:
        """Replace the file in one step, if the list is not the one already in it."""
        entries = [registry_entry(service) for service in services]
        if entries == self._written:
            return
        content = {"saved_at": datetime.now(UTC).isoformat(), "services": entries}
        draft = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(content), "utf-8")
            draft.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            if not self._failing:  # once for all the tries until it is saved
                log.warning("list not saved file=%s reason=%r", self.path, error.strerror)
            self._failing = True
        else:
            self._written, self._failing = entries, False
