"""What the babysitter says to a registry about itself and about its engine. Pure."""

import datetime as dt
import json
import logging
from collections.abc import Mapping, Sequence

from infinilm_babysitter.config import Config
from infinilm_babysitter.readiness import Model, model_ids

Record = Mapping[str, object]

RUNNING = "running"
RESTARTING = "restarting"
CRASHLOOP = "crashloop"
DRAINING = "draining"
STALLED = "stalled"
MOST_MODELS = 256
MOST_METADATA = 15_000
"""Bytes of JSON; registries take 16 KiB."""

log = logging.getLogger(__name__)


def babysitter_record(config: Config, instance: str) -> Record:
    """The babysitter's own service, never routed to."""
    metadata = {"type": config.service_type, "babysitter": "enhanced", "started_at": _now()}
    return _record(config, config.name, config.port + 1, instance, metadata)


def engine_record(config: Config, instance: str, models: Sequence[Model]) -> Record:
    """The engine, running, with its models and what `[metadata]` adds or replaces."""
    served = tuple(models)[:MOST_MODELS]
    if len(served) < len(models):
        log.warning("models not registered beyond limit=%d served=%d", MOST_MODELS, len(models))
    metadata = {
        "type": "openai-api",
        "parent_service": config.name,
        "babysitter": "enhanced",
        "models": model_ids(served),
        "models_list": [dict(model) for model in served],
        "started_at": _now(),
        **config.metadata,
    }
    if len(json.dumps(metadata)) > MOST_METADATA:
        keep = ("id", "object", "created", "owned_by")
        metadata["models_list"] = [
            {key: model[key] for key in keep if key in model} for model in served
        ]
    record = _record(config, f"{config.name}-server", config.port, instance, metadata)
    return record if config.weight is None else {**record, "weight": config.weight}


def _record(
    config: Config, name: str, port: int, instance: str, metadata: Mapping[str, object]
) -> Record:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return {
        "name": name,
        "host": config.host,
        "hostname": config.host,
        "port": port,
        "url": f"http://{host}:{port}",
        "status": RUNNING,
        "timestamp": _now(),
        "metadata": metadata,
        "instance_id": instance,
        "heartbeat_interval": config.timing.heartbeat_interval,
    }


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
