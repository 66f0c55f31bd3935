"""What of a configuration file is not the routers' own."""

import json
import subprocess
from pathlib import Path

import pytest

from rig.processes import ROOT
from rig.routers import router_argv, router_names


def checked_config(name: str, file: Path) -> tuple[int, str]:
    command = [*router_argv(name), "--config", str(file), "--state-dir", "none", "--check-config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("value", ["auto", "rust", 7])
def test_either_router_takes_the_file_whatever_implementation_it_names(tmp_path, value):
    shipped = json.loads((ROOT / "deployment_configs/router_config.json").read_text())
    shipped["router"]["implementation"] = value
    file = tmp_path / "router_config.json"
    file.write_text(json.dumps(shipped))
    answers = {checked_config(name, file) for name in router_names()}
    assert len(answers) == 1
    code, shown = answers.pop()
    assert code == 0, shown
    assert "implementation" not in json.loads(shown)
    shipped["router"]["implementations"] = value
    file.write_text(json.dumps(shipped))
    refused = {checked_config(name, file) for name in router_names()}
    assert len(refused) == 1
    assert ", implementation, " in refused.pop()[1]
