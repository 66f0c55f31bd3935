"""The program: flags to configuration, logging, run, exit code."""

import asyncio
import json
import logging
import sys
from collections.abc import Sequence

from infinilm_babysitter.app import StartError, run
from infinilm_babysitter.checks import ConfigError
from infinilm_babysitter.config import check_config
from infinilm_babysitter.flags import read_settings

EX_USAGE = 64

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 stopped as asked, 1 could not start or not stop everything, 64 bad settings."""
    try:
        settings = read_settings(argv)
        config = check_config(settings.raw, file=settings.file, flags=settings.flags)
    except ConfigError as error:
        sys.stderr.writelines(f"error: {fault}\n" for fault in error.faults)
        return EX_USAGE
    if settings.check_only:
        sys.stdout.write(json.dumps(config.as_json(), indent=2) + "\n")
        return 0
    logging.basicConfig(
        stream=sys.stdout, level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s"
    )
    for note in settings.notes:
        log.warning("flag ignored reason=%r", note)
    try:
        return asyncio.run(run(config))
    except StartError as error:
        log.error("cannot start reason=%r", str(error))  # noqa: TRY400  # no traceback for users
        return 1
