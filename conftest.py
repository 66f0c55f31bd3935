"""Fixtures that every folder of tests may use."""

import re
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from rig.processes import Programs, programs

# A machine that pauses is no fault of what is tested.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

FIGURE = re.compile(r"R\d+[ :].*")  # what a promise's test measured: "R12 rust: 1.2 attempts"


def pytest_configure() -> None:
    """Take Ctrl-C even when a shell started this run in the background, where it is ignored.

    The programs under test would inherit that, and could not be stopped by SIGINT. Nor by SIGHUP
    under nohup: a handler that does nothing is not inherited.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures that the tests of the promises printed."""
    passed = terminalreporter.getreports("passed")
    figures = [
        line
        for report in passed
        if report.when == "call"
        for line in report.capstdout.splitlines()
        if FIGURE.fullmatch(line)
    ]
    if figures:
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.write_line(line)


@pytest.fixture
def run() -> Iterator[Programs]:
    """Starts programs of the project; whatever still runs after the test is killed."""
    with programs() as started:
        yield started
