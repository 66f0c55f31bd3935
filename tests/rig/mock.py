"""Start the project's mock engine."""

import sys

from rig.processes import ROOT, Program, Programs

MOCK_ENGINE = (sys.executable, "-m", "infinilm_babysitter.mock_engine")
MOCK_ENVIRONMENT = {"PYTHONPATH": str(ROOT / "babysitter")}


def start_mock_engine(run: Programs, *flags: str) -> tuple[Program, str]:
    """Start it on a free port; returns the program and its base URL once it serves."""
    program = run.start(*MOCK_ENGINE, *flags, env=MOCK_ENVIRONMENT)
    return program, program.wait_listening()
