"""Talk to a router from a script or a shell: `RouterClient`, and commands around it."""

import sys

from infinilm_router.client import (
    ClientError,
    RefusedError,
    RouterClient,
    StreamError,
    UnreachableError,
)
from infinilm_router.client_cli import main

__all__ = ["ClientError", "RefusedError", "RouterClient", "StreamError", "UnreachableError"]

if __name__ == "__main__":
    sys.exit(main())
