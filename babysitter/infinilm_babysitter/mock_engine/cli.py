"""Start, serve until a signal, stop: the mock engine as a program."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence

from aiohttp import web

from infinilm_babysitter.mock_engine.config import ConfigError, EngineConfig, build_parser, check
from infinilm_babysitter.mock_engine.engine import Engine
from infinilm_babysitter.mock_engine.errors import errors_to_json
from infinilm_babysitter.mock_engine.handlers import Handlers

log = logging.getLogger(__name__)

# Long contexts and images come as one body; no engine refuses them at aiohttp's 1 MiB.
_MAX_BODY = 64 << 20
# The babysitter lets answers end before it sends SIGTERM. What still runs then is cut, visibly:
# aiohttp waits up to three times this long, then closes without the end of the body.
_STOP_SECONDS = 0.1


def build_app(config: EngineConfig) -> web.Application:
    """The application with all its routes."""
    app = web.Application(middlewares=[errors_to_json], client_max_size=_MAX_BODY)
    app.add_routes(Handlers(Engine(config)).routes())
    return app


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(config: EngineConfig) -> None:
    """Serve until SIGTERM or SIGINT; a second signal needs no waiting for, stopping is quick.

    Raises:
        OSError: the address cannot be listened on.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        build_app(config),
        handler_cancellation=True,  # a client that leaves frees its slot at once
        access_log=None,
        shutdown_timeout=_STOP_SECONDS,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, config.host, config.port)
        await site.start()
        port = runner.addresses[0][1]
        sys.stdout.write(f"listening on {_url(config.host, port)}\n")
        sys.stdout.flush()
        log.info("serving models=%s", ",".join(config.models))
        await stop.wait()
        log.info("stopping")
    finally:
        await runner.cleanup()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code (0 stopped, 1 cannot listen, 64 bad flags)."""
    parser = build_parser()
    try:
        config = check(parser.parse_args(argv))
    except ConfigError as error:
        for fault in error.faults:
            sys.stderr.write(f"{fault}\n")
        return os.EX_USAGE
    except SystemExit as error:
        # argparse has said what it wants; its own code for that would be 2.
        return os.EX_USAGE if error.code else os.EX_OK
    logging.basicConfig(
        stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    try:
        asyncio.run(serve(config))
    except OSError as error:
        # What is wrong is in the message; a traceback would only hide it.
        log.error("cannot listen host=%s port=%d error=%s", config.host, config.port, error)  # noqa: TRY400
        return 1
    return os.EX_OK
