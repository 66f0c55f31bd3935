import errno
import os

import pytest

from infinilm_router.utils.resources import is_shortage


def failure(*numbers: int) -> OSError:
    """As asyncio tells of the attempts at several addresses, or at one."""
    each = [OSError(number, os.strerror(number)) for number in numbers]
    return (
        each[0] if len(each) == 1 else OSError(f"Multiple exceptions: {', '.join(map(str, each))}")
    )


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((errno.EMFILE,), True),
        ((errno.ENOMEM, errno.EMFILE), True),
        ((errno.ECONNREFUSED,), False),
        ((errno.ECONNREFUSED, errno.EMFILE), False),
    ],
)
def test_what_the_router_lacks_is_told_from_what_its_peers_do(
    numbers: tuple[int, ...], expected: bool
) -> None:
    assert is_shortage(failure(*numbers)) is expected


def test_a_time_that_is_over_is_no_shortage() -> None:
    assert not is_shortage(TimeoutError())
