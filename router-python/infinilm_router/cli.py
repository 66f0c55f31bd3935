"""The command line: arguments -> configuration, logging, serve, exit code."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence

import uvloop

from infinilm_router.app import App
from infinilm_router.config import RouterConfig
from infinilm_router.config_load import ConfigError, load_config
from infinilm_router.utils.resources import raise_descriptor_limit

EX_USAGE = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Run the router until it is told to stop; 64 when its configuration can't be used."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        command = load_config(arguments, os.environ)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EX_USAGE
    if command.check_only:
        sys.stdout.write(f"{command.config.to_json()}\n")
        return 0
    logging.basicConfig(
        stream=sys.stdout,
        level=command.config.log_level.upper(),
        format="%(asctime)s %(levelname)s %(message)s",
    )
    return serve(command.config, lambda: load_config(arguments, os.environ).config)


def serve(config: RouterConfig, reload: Callable[[], RouterConfig]) -> int:
    """Serve with this configuration, `reload`ed on SIGHUP; returns the exit code."""
    raise_descriptor_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(App(config, reload).run())
