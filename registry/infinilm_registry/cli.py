"""The program: settings, logging, serve until a signal, exit code."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence

from infinilm_registry.app import StartError, serve
from infinilm_registry.config import ConfigError, load

_BAD_SETTINGS = 64
LOG = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 after a stop by signal, 1 if it cannot start, 64 for faulty settings."""
    try:
        invocation = load(sys.argv[1:] if arguments is None else arguments, os.environ)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return _BAD_SETTINGS
    if invocation.check_only:
        sys.stdout.write(json.dumps(invocation.config.as_json(), indent=2) + "\n")
        return 0
    logging.basicConfig(
        stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    # It logs a trace for every malformed request; what goes wrong in our code is logged in app.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    try:
        asyncio.run(serve(invocation.config))
    except StartError as error:
        LOG.error("cannot start reason=%r", str(error))  # noqa: TRY400 - a trace would not help
        return 1
    return 0
