"""run_tests.sh, with stand-ins for the tools it calls."""

import sys

import pytest

PYTHON = f"""#!/bin/sh
[ "$1" = -c ] && exec "{sys.executable}" "$@"
shift
echo "ran $* MYPYPATH=$MYPYPATH"
case "$FAILING" in *"$1 "*) exit 1 ;; esac
"""


@pytest.fixture
def checks(tree):
    tree.write("fake/python", PYTHON).chmod(0o755)
    tree.write("fake/shellcheck", '#!/bin/sh\necho "ran shellcheck $*"\n').chmod(0o755)

    def run(*arguments: str, **env: str) -> tuple[int, list[str]]:
        python = str(tree.root / "fake/python")
        code, output = tree.script("run_tests.sh", *arguments, INFINILM_PYTHON=python, **env)
        return code, [line for line in output.splitlines() if line]

    return run


def test_all_groups_run_and_success_is_said(checks):
    code, lines = checks("-k", "one name")
    assert (code, lines[-1]) == (0, "all checks passed")
    assert "ran ruff check . MYPYPATH=" in lines
    assert "ran ruff format --check . MYPYPATH=" in lines
    for folder, package in (
        ("registry", "infinilm_registry"),
        ("babysitter", "infinilm_babysitter"),
        ("router-python", "infinilm_router"),
    ):
        assert f"ran mypy {folder}/{package} MYPYPATH={folder}" in lines
    assert "ran pytest -k one name MYPYPATH=" in lines
    assert any(line.startswith("ran shellcheck ") and "./launch_all.sh" in line for line in lines)


def test_a_group_that_fails_is_named_at_the_end_after_all_have_run(checks):
    code, lines = checks(FAILING="mypy ")
    assert code == 1
    assert lines[-1].startswith(
        "error: failed: mypy registry; mypy babysitter; mypy router-python;"
    )
    assert "ran pytest MYPYPATH=" in lines


def test_slow_selects_the_slow_lane(checks):
    code, lines = checks("--slow")
    assert code == 0
    assert "ran pytest -m slow MYPYPATH=" in lines


def test_continuous_integration_runs_the_same(tree, checks):
    tree.write("run_tests.sh", '#!/bin/sh\necho "ran with $*"\n').chmod(0o755)
    assert tree.script(".ci/run", "--slow") == (0, "ran with --slow\n")
