"""HTTP endpoints: read the request, hold a slot, answer whole or as a stream."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from aiohttp import web

from infinilm_babysitter.mock_engine.answers import (
    ChatShape,
    CompletionShape,
    Json,
    Shape,
    embedding_list,
    model_object,
    usage,
)
from infinilm_babysitter.mock_engine.bodies import (
    GenerationRequest,
    model_not_found,
    parse_chat,
    parse_completion,
    parse_embedding,
)
from infinilm_babysitter.mock_engine.config import EngineConfig
from infinilm_babysitter.mock_engine.engine import Engine, generations
from infinilm_babysitter.mock_engine.metrics import render_metrics
from infinilm_babysitter.mock_engine.text import Generation
from infinilm_babysitter.mock_engine.wire import SSE_DONE, sse_event, to_json

log = logging.getLogger(__name__)

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx in front must not collect the events
}


def _json_response(value: Json) -> web.Response:
    return web.Response(body=to_json(value), content_type="application/json")


class _EventStream:
    """Chunks of one streamed answer, written as they are made."""

    def __init__(self, response: web.StreamResponse, shape: Shape, *, with_usage: bool) -> None:
        self._response = response
        # With include_usage every chunk carries the field; only the last one fills it.
        self._envelope = shape.envelope(stream=True) | ({"usage": None} if with_usage else {})

    async def choice(self, choice: Json) -> None:
        await self._response.write(sse_event(self._envelope | {"choices": [choice]}))

    async def usage(self, counts: Json) -> None:
        await self._response.write(sse_event(self._envelope | {"choices": [], "usage": counts}))

    async def done(self) -> None:
        await self._response.write(SSE_DONE)
        await self._response.write_eof()


class Handlers:
    """All endpoints of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._started = time.monotonic()
        self._config = engine.config
        self._models = {
            model: model_object(model, int(time.time()), engine.config.max_model_len)
            for model in engine.config.models
        }

    def routes(self) -> list[web.RouteDef]:
        """Every route, each inference call with and without `/v1`."""
        return [
            *(
                route
                for prefix in ("/v1", "")
                for route in (
                    web.post(f"{prefix}/chat/completions", self.chat),
                    web.post(f"{prefix}/completions", self.completions),
                    web.post(f"{prefix}/embeddings", self.embeddings),
                    web.get(f"{prefix}/models", self.models),
                    web.get(f"{prefix}/models/{{id:.+}}", self.model),
                )
            ),
            web.get("/health", self.health),
            web.get("/info", self.info),
            web.get("/metrics", self.metrics),
        ]

    async def chat(self, http: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`."""
        return await self._generate(http, parse_chat, ChatShape)

    async def completions(self, http: web.Request) -> web.StreamResponse:
        """`POST /v1/completions`."""
        return await self._generate(http, parse_completion, CompletionShape)

    async def embeddings(self, http: web.Request) -> web.StreamResponse:
        """`POST /v1/embeddings`."""
        request = parse_embedding(await http.read(), self._config)
        async with self._engine.slot(request.model):
            await self._engine.prefill(request.model, request.prompt_tokens)
            return _json_response(embedding_list(request))

    async def models(self, _: web.Request) -> web.StreamResponse:
        """`GET /v1/models`: every model served."""
        return _json_response({"object": "list", "data": list(self._models.values())})

    async def model(self, http: web.Request) -> web.StreamResponse:
        """`GET /v1/models/{id}`: one of them; an id may hold slashes."""
        name = http.match_info["id"]
        if name not in self._models:
            raise model_not_found(name)
        return _json_response(self._models[name])

    async def health(self, _: web.Request) -> web.StreamResponse:
        """`GET /health`: 200 as long as the engine serves, and how busy it is."""
        counters = self._engine.counters
        return _json_response(
            {
                "status": "ok",
                "engine": "mock",
                "models": list(self._models),
                "running": counters.running.total(),
                "waiting": counters.waiting.total(),
            }
        )

    async def info(self, _: web.Request) -> web.StreamResponse:
        """`GET /info`: what this is and for how many seconds it has been up."""
        uptime = time.monotonic() - self._started
        metadata = {"type": "mock", "models": list(self._models)}
        return _json_response({"name": "mock-engine", "metadata": metadata, "uptime": uptime})

    async def metrics(self, _: web.Request) -> web.StreamResponse:
        """`GET /metrics` for Prometheus."""
        text = render_metrics(self._engine.counters, self._config.models)
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _generate(
        self,
        http: web.Request,
        parse: Callable[[bytes, EngineConfig], GenerationRequest],
        make_shape: Callable[[GenerationRequest], Shape],
    ) -> web.StreamResponse:
        request = parse(await http.read(), self._config)
        shape = make_shape(request)
        running = generations(request)
        started = time.monotonic()
        try:
            async with self._engine.slot(request.model):
                await asyncio.sleep(request.hang_seconds)
                await self._engine.prefill(request.model, request.prompt_tokens)
                if request.stream:
                    return await self._stream(http, request, shape, running)
                return await self._whole(request, shape, running)
        finally:
            _log_request(http, request, running, started)

    async def _whole(
        self, request: GenerationRequest, shape: Shape, running: Sequence[Generation]
    ) -> web.StreamResponse:
        texts: list[list[str]] = [[] for _ in running]
        async for index, text in self._engine.generate(request, running):
            texts[index].append(text)
        choices = [
            shape.whole(index, "".join(texts[index]), generation.finish_reason)
            for index, generation in enumerate(running)
        ]
        counts = usage(request.prompt_tokens, running)
        return _json_response(
            shape.envelope(stream=False) | {"choices": choices, "usage": counts},
        )

    async def _stream(
        self,
        http: web.Request,
        request: GenerationRequest,
        shape: Shape,
        running: Sequence[Generation],
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=_STREAM_HEADERS)
        await response.prepare(http)
        events = _EventStream(response, shape, with_usage=request.include_usage)
        for index, generation in enumerate(running):
            if first := shape.first(index):
                await events.choice(first)
            if generation.finish_reason is not None:  # nothing was to be generated
                await events.choice(shape.last(index, generation.finish_reason))
        async for index, text in self._engine.generate(request, running):
            if text:
                await events.choice(shape.piece(index, text))
            if (reason := running[index].finish_reason) is not None:
                await events.choice(shape.last(index, reason))
        if request.include_usage:
            await events.usage(usage(request.prompt_tokens, running))
        await events.done()
        return response


def _log_request(
    http: web.Request, request: GenerationRequest, running: Sequence[Generation], started: float
) -> None:
    """One line per request; an answer that did not come to its end is an aborted one."""
    reasons = [generation.finish_reason for generation in running]
    log.info(
        "request path=%s model=%s stream=%s prompt_tokens=%d completion_tokens=%d seconds=%.3f "
        "finish=%s",
        http.path,
        request.model,
        request.stream,
        request.prompt_tokens,
        sum(generation.tokens for generation in running),
        time.monotonic() - started,
        "aborted" if None in reasons else ",".join(map(str, reasons)),
    )
