"""The engine's working part: slots, prefill, pace, and the counters that describe them."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence

from infinilm_babysitter.mock_engine.bodies import GenerationRequest, prefill_seconds
from infinilm_babysitter.mock_engine.config import EngineConfig
from infinilm_babysitter.mock_engine.prompts import Prompt
from infinilm_babysitter.mock_engine.text import Generation, answer_tokens, fingerprint


class Counters:
    """What the engine has done and does now, per model; read by `/health` and `/metrics`."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        self.finished: Counter[tuple[str, str]] = Counter()
        self.prompt_tokens: Counter[str] = Counter()
        self.generated_tokens: Counter[str] = Counter()
        self.most_running = 0

    @contextlib.contextmanager
    def run(self, model: str) -> Iterator[None]:
        """Count one request as running while the block lasts."""
        self.running[model] += 1
        self.most_running = max(self.most_running, self.running.total())
        try:
            yield
        finally:
            self.running[model] -= 1

    @contextlib.contextmanager
    def wait(self, model: str) -> Iterator[None]:
        """Count one request as waiting while the block lasts."""
        self.waiting[model] += 1
        try:
            yield
        finally:
            self.waiting[model] -= 1


def _opening(model: str, prompt: Prompt, choice: int) -> str:
    """The helpful part of an answer, before it goes on with filler."""
    which = f" This is choice {choice + 1}." if choice else ""
    return (
        f"This is the InfiniLM-SVC mock engine, serving as '{model}'.{which} No language model "
        "runs here: the text is made up, and the same request always gets the same text. "
        f"{prompt.facts} To serve a real model, name your engine in a file under "
        "deployment_configs/babysitters/ and launch again."
    )


def generations(request: GenerationRequest) -> list[Generation]:
    """One generation per choice of each prompt, in the order of their `index`.

    The text depends on model, prompt, seed and choice alone: asking for more tokens continues
    the same text, and streaming does not change it.
    """
    made = []
    for prompt in request.prompts:
        for choice in range(request.choices):
            seed = fingerprint(
                request.model.encode(), prompt.identity, str((request.seed, choice)).encode()
            )
            source = answer_tokens(
                _opening(request.model, prompt, choice),
                seed,
                endless=request.max_tokens is not None,
            )
            made.append(Generation(source, request.max_tokens, request.stops))
    return made


class Engine:
    """Admits requests to slots and paces them; the same for every kind of call."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.counters = Counters()
        self._slots = asyncio.Semaphore(config.max_concurrency or 1 << 30)

    @contextlib.asynccontextmanager
    async def slot(self, model: str) -> AsyncIterator[None]:
        """Hold a slot while the block lasts; first come, first served.

        A client that leaves cancels its handler: it gives up its place, or its slot, at once.
        """
        try:
            with self.counters.wait(model):
                await self._slots.acquire()
            try:
                with self.counters.run(model):
                    yield
            finally:
                self._slots.release()
        except (asyncio.CancelledError, ConnectionResetError):
            self.counters.finished[model, "abort"] += 1
            raise

    async def prefill(self, model: str, tokens: int) -> None:
        """Read a prompt: takes the configured time."""
        await asyncio.sleep(prefill_seconds(tokens, self.config))
        self.counters.prompt_tokens[model] += tokens

    async def generate(
        self, request: GenerationRequest, running: Sequence[Generation]
    ) -> AsyncIterator[tuple[int, str]]:
        """Step all generations side by side at the configured pace; yields (index, text).

        The pace is kept against the clock, so a slow reader or a late wake-up is caught up with.
        """
        loop = asyncio.get_running_loop()
        due = loop.time()
        interval = 1 / self.config.tokens_per_second if self.config.tokens_per_second else 0.0
        while any(generation.finish_reason is None for generation in running):
            due += interval
            await asyncio.sleep(max(0.0, due - loop.time()))
            for index, generation in enumerate(running):
                if generation.finish_reason is None:
                    before = generation.tokens
                    text = generation.step()
                    self.counters.generated_tokens[request.model] += generation.tokens - before
                    yield index, text
        for generation in running:
            self.counters.finished[request.model, str(generation.finish_reason)] += 1
