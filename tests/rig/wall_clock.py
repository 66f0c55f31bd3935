"""A wall clock that programs believe in and tests move; the monotonic clock stays the real one.

    clock = WallClock(tmp_path)
    program = run.python("registry/service_registry.py", env=clock.env)
    clock.set(3600)     # from now on they think that it is an hour later

It takes libfaketime, which stands between a program and the C library.
"""

import time
from pathlib import Path

LIBRARY = "faketime/libfaketimeMT.so.1"
PLACES = ("/usr/lib", "/usr/local/lib")


def _library() -> Path:
    found = [path for place in PLACES for path in Path(place).glob(f"**/{LIBRARY}")]
    if not found:
        raise FileNotFoundError(f"{LIBRARY}: install the package faketime (run_tests.sh does)")
    return found[0]


class WallClock:
    """Seconds that the programs' wall clock is ahead of the real one."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "faketime"
        self.ahead = 0.0
        self.set(0.0)
        self.env = {
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",  # a jump is seen at once
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, ahead: float) -> None:
        """Jump to `ahead` seconds before or behind the real time."""
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{ahead:+.0f}\n")
        draft.replace(self._file)  # whoever reads meanwhile sees the old or the new, whole
        self.ahead = ahead

    def now(self) -> float:
        """The time that the programs believe."""
        return time.time() + self.ahead
