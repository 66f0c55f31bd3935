"""R43: it runs for weeks: no error without a fault that explains it, nothing grows."""

from pathlib import Path

import pytest

from rig.processes import Programs
from rig.routers import router_names
from slow.soak import Summary, soak

LONG = (pytest.mark.slow, pytest.mark.timeout(1200))


@pytest.mark.parametrize("minutes", [0.1, pytest.param(10.0, marks=LONG)])
@pytest.mark.parametrize("name", router_names())
def test_every_error_is_explained_by_a_fault_and_nothing_grows(
    run: Programs, tmp_path: Path, name: str, minutes: float
) -> None:
    found = soak(run, tmp_path, name, minutes)
    print(
        f"R43 {name}: {found.calls} streams in {found.seconds:.0f} s, {found.explained} errors"
        f" explained by {sum(found.faults.values())} faults, {len(found.unexplained)} not;"
        f" memory {found.memory_mb_per_minute:+.2f} MB a minute, descriptors {found.descriptors},"
        f" threads {found.tasks}, idle {found.idle_cpu:.1%} of a core"
    )
    assert found.wrong() == []
    assert found.calls > 20 * 60 * minutes * 0.8
    assert found.ok > found.calls / 2


@pytest.mark.parametrize(
    "change",
    [
        {"unexplained": ["502"]},
        {"exception_lines": ["Traceback"]},
        {"memory_mb_per_minute": 1.1},
        {"idle_cpu": 0.03},
        {"descriptors": [10, 21]},
        {"tasks": [2, 13]},
        {"in_flight": 1},
    ],
)
def test_a_soak_says_everything_that_is_wrong(change: dict[str, object]) -> None:
    right: dict[str, object] = {"descriptors": [10, 20], "tasks": [2, 12]}
    assert Summary("r", 600, **right).wrong() == []  # type: ignore[arg-type]
    assert len(Summary("r", 600, **{**right, **change}).wrong()) == 1  # type: ignore[arg-type]
