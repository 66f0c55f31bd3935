"""What time does to an exchange: silence has a limit, and clients that wait get pings."""

import math
from typing import TYPE_CHECKING, Final

from infinilm_router.utils.errors import Code, RouterError

if TYPE_CHECKING:
    from infinilm_router.proxy.forward import Exchange

TIMER_SLACK: Final = 0.001  # seconds; timers may come a little early


def set_deadline(exchange: "Exchange") -> None:
    """Look again when it may have been silent for too long, or when a ping is due."""
    limit = _silence_limit(exchange)
    if _pings(exchange):
        limit = min(limit, exchange.gateway.config.sse_ping_interval)
    _wake_after(exchange, limit)


def on_deadline(exchange: "Exchange") -> None:
    """End what takes too long, or send a ping."""
    now = exchange.gateway.queue.now()
    silence = now - exchange.last_activity
    limit = _silence_limit(exchange)
    if now >= exchange.stream_end - TIMER_SLACK:
        longest = exchange.gateway.config.stream_timeout
        text = f"Service timeout: the stream has lasted for {longest:g} s"
        exchange.abort(RouterError(Code.IDLE_TIMEOUT, text))
    elif exchange.paused:  # the client reads slowly: the engine is not to blame for silence
        _wake_after(exchange, limit)
    elif silence >= limit - TIMER_SLACK:
        _too_silent(exchange, limit, now)
    else:
        _wake_after(exchange, min(limit - silence, _until_ping(exchange, silence)))


def _wake_after(exchange: "Exchange", seconds: float) -> None:
    queue = exchange.gateway.queue
    queue.set(exchange.deadline, min(seconds, exchange.stream_end - queue.now()))


def _silence_limit(exchange: "Exchange") -> float:
    config = exchange.gateway.config
    if exchange.ticket is not None:
        return config.queue_timeout
    if exchange.reader is not None:
        return config.idle_timeout
    return config.first_byte_timeout if exchange.request.stream else config.response_timeout


def _too_silent(exchange: "Exchange", limit: float, now: float) -> None:
    if exchange.ticket is not None:
        exchange.told(exchange.gateway.room.late(exchange.ticket, now))
    elif exchange.reader is None:
        exchange.engine_broke(Code.FIRST_BYTE_TIMEOUT, f"no answer within {limit:g} s")
    else:
        exchange.engine_broke(Code.IDLE_TIMEOUT, f"no byte for {limit:g} s")


def _pings(exchange: "Exchange") -> bool:
    if not exchange.request.stream or not exchange.gateway.config.sse_ping_interval:
        return False
    return exchange.response is None or exchange.response.event_stream


def _until_ping(exchange: "Exchange", silence: float) -> float:
    """Send a comment if it is time for one; seconds until the next."""
    if not _pings(exchange):
        return math.inf
    interval = exchange.gateway.config.sse_ping_interval
    if silence < interval - TIMER_SLACK:
        return interval - silence
    _ping(exchange)
    return interval


def _ping(exchange: "Exchange") -> None:
    if not exchange.relay.started:
        exchange.relay.start_early(exchange.own_fields())
    elif exchange.relay.between_events():
        exchange.relay.ping()
