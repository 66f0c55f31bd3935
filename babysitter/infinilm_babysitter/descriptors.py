"""How many files and connections the babysitter may have open."""

import contextlib
import resource

MOST = 65_536
GIVEN = resource.getrlimit(resource.RLIMIT_NOFILE)
"""What we were started with, for those that we start."""


def raise_limit() -> None:
    """Every client of port + 1 holds one."""
    soft, hard = GIVEN
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def give_limit_back(pid: int) -> None:
    """A child gets what it would have got without us: some programs fail above 1024."""
    with contextlib.suppress(OSError):  # where a sandbox forbids it
        resource.prlimit(pid, resource.RLIMIT_NOFILE, GIVEN)
