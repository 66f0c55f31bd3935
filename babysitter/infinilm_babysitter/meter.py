"""Reads what an engine's own metrics say about its work, whichever of the known engines it is."""

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass

from infinilm_babysitter.door import Door
from infinilm_babysitter.liveness import Load
from infinilm_babysitter.prometheus import sums

METRICS_PATH = "/metrics"
COMPLETIONS_PATH = "/v1/completions"
UNABLE = frozenset({400, 401, 403, 404, 405, 415, 422, 501})
"""Answers that say: not here, not like this; asking again is of no use."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The names that one kind of engine gives its metrics."""

    name: str
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    progress: tuple[str, ...]
    """What moves when tokens do; of those that a version lacks nothing is expected."""
    threads: int | None = None
    """So many connections it serves at once for certain; more may keep it from answering us."""

    @property
    def names(self) -> frozenset[str]:
        """All of them."""
        return frozenset((*self.running, *self.waiting, *self.progress))


VLLM = Dialect(
    name="vllm",
    running=("vllm:num_requests_running",),
    waiting=("vllm:num_requests_waiting",),
    progress=(
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
        # A long prompt is counted when it has been read, but takes cache on the way.
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
    ),
)
SGLANG = Dialect(
    name="sglang",
    running=("sglang:num_running_reqs",),
    waiting=("sglang:num_queue_reqs",),
    progress=(
        # Counted at the end of a request ...
        "sglang:prompt_tokens_total",
        "sglang:generation_tokens_total",
        # ... so these, which move in between, are needed as well.
        "sglang:time_to_first_token_seconds_count",
        "sglang:inter_token_latency_seconds_count",
        "sglang:time_per_output_token_seconds_count",
        "sglang:num_used_tokens",
        "sglang:token_usage",
        "sglang:gen_throughput",
    ),
)
LLAMA_CPP = Dialect(
    name="llama-cpp",
    running=("llamacpp:requests_processing",),
    waiting=("llamacpp:requests_deferred",),
    progress=(
        "llamacpp:prompt_tokens_total",
        "llamacpp:tokens_predicted_total",  # counted at the end of an answer
        "llamacpp:n_decode_total",
    ),
    threads=3,
)
DIALECTS = (VLLM, SGLANG, LLAMA_CPP)
ALL_NAMES = frozenset(name for dialect in DIALECTS for name in dialect.names)


class NoLoad(enum.Enum):
    """Why there is none."""

    SILENT = "did not come in time"
    ABSENT = "the engine has no metrics that we know"


def understand(page: str) -> tuple[Dialect, Load] | None:
    """The load that a metrics page shows, if it is of an engine that we know."""
    found = sums(page, ALL_NAMES)
    for dialect in DIALECTS:
        if found.keys() & set(dialect.running):
            return dialect, Load(
                running=_total(found, dialect.running),
                waiting=_total(found, dialect.waiting),
                progress=tuple(found[name] for name in dialect.progress if name in found),
            )
    return None


def _total(found: dict[str, float], names: Sequence[str]) -> float:
    return sum(found.get(name, 0.0) for name in names)


class Meter:
    """The metrics of one run of an engine."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.dialect: Dialect | None = None
        """Whose metrics these are; None until some have been understood."""
        self._absent = False

    async def read(self) -> Load | NoLoad:
        """What it has to do, and counters that show whether it gets on."""
        if self._absent:
            return NoLoad.ABSENT
        status, body = await self._door.get(METRICS_PATH)
        understood = understand(body.decode(errors="replace")) if status == 200 else None
        if understood:
            self.dialect, load = understood
            return load
        if status is None and self.dialect:
            return NoLoad.SILENT
        self._absent = status in UNABLE and self.dialect is None
        return NoLoad.ABSENT

    def must_answer(self, clients: int) -> bool:
        """Whether so many clients are no reason for its metrics to be late."""
        if self.dialect is None:
            return False
        return self.dialect.threads is None or clients <= self.dialect.threads

    async def try_one_token(self, model: str) -> bool:
        """Have it make a token, which its metrics will show; whether it can be asked for that.

        The metrics of an engine that all clients have left would never move again by themselves.
        """
        body = json.dumps({"model": model, "prompt": "a", "max_tokens": 1}).encode()
        status, _ = await self._door.post(COMPLETIONS_PATH, body)
        return status not in UNABLE
