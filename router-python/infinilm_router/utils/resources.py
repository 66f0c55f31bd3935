"""What the system lets this process have: descriptors and memory."""

import errno
import re
import resource
from typing import Final

SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

_ERRNO = re.compile(r"\[Errno (\d+)\]")


def is_shortage(error: OSError) -> bool:
    """Whether this process, or its machine, lacks what a connection needs: no fault of the peer."""
    # For a name with several addresses there is but the text of all attempts: what one of them says
    # of the peer counts for more.
    said: list[int | None] = [int(number) for number in _ERRNO.findall(str(error))] or [error.errno]
    return all(number in SHORTAGES for number in said)


def raise_descriptor_limit() -> None:
    """Take as many descriptors as the administrator allows.

    The soft limit is low (1,024, mostly) for programs that use `select`, and lower than the clients
    that may connect.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
