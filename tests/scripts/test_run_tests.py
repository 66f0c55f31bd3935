"""run_tests.sh, with stand-ins for the tools it calls."""

import sys

import pytest

PYTHON = f"""#!/bin/sh
[ "$1" = -c ] && exec "{sys.executable}" "$@"
shift
echo "ran $* MYPYPATH=$MYPYPATH"
[ "$1" = pytest ] && echo "routers: ${{ROUTERS:-all}}"
case "$FAILING" in *"$1 "*) exit 1 ;; esac
"""
CARGO = """#!/bin/sh
case "$1 $2" in
  "--version "*) echo "cargo $CARGO_STAND_IN"; exit ;;
  *" --version") case "$CARGO_TOOLS" in *"$1"*) exit 0 ;; *) exit 101 ;; esac ;;
esac
echo "ran cargo $* in ${PWD##*/} jobs=$CARGO_BUILD_JOBS"
case "$FAILING" in *"cargo $1"*) exit 1 ;; esac
"""

WHOLE_SUITE = "ran pytest -n 2 --dist loadfile MYPYPATH="


@pytest.fixture
def checks(tree):
    tree.program("fake/python", PYTHON)
    tree.program("fake/cargo", CARGO)
    tree.program("fake/shellcheck", '#!/bin/sh\necho "ran shellcheck $*"\n')
    tree.env.update(CARGO_STAND_IN="1.99.0", CARGO_BUILD_JOBS="")

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
    assert WHOLE_SUITE in lines


def cargo_lines(lines: list[str]) -> list[str]:
    return [line.removeprefix("ran cargo ") for line in lines if line.startswith("ran cargo ")]


def test_the_rust_router_is_checked_and_built_before_pytest(checks):
    code, lines = checks()
    assert code == 0
    assert cargo_lines(lines) == [
        "fmt --check in router-rust jobs=2",
        "clippy --all-targets --locked -- -D warnings in router-rust jobs=2",
        "test --locked in router-rust jobs=2",
        "doc --no-deps --locked in router-rust jobs=2",
        "build --release --locked in router-rust jobs=2",
    ]
    assert lines.index("ran cargo build --release --locked in router-rust jobs=2") < lines.index(
        WHOLE_SUITE
    )
    assert "routers: all" in lines
    assert "== cargo deny is not installed: not run" in lines
    assert "== cargo audit is not installed: not run" in lines


def test_cargo_deny_and_audit_run_where_they_are_installed(checks):
    _, lines = checks(CARGO_TOOLS="deny audit", CARGO_BUILD_JOBS="7")
    assert "deny --locked check in router-rust jobs=7" in cargo_lines(lines)
    assert "audit in router-rust jobs=7" in cargo_lines(lines)


def test_a_rust_router_that_is_not_built_is_not_tested_in_an_older_state(checks):
    code, lines = checks(FAILING="cargo clippy, cargo build")
    assert code == 1
    assert "routers: python" in lines
    assert lines[-1].startswith("error: failed: cargo clippy; cargo build;")


def test_without_cargo_one_line_says_that_the_rust_router_is_left_out(tree, checks):
    (tree.root / "fake/cargo").unlink()
    code, lines = checks(PATH=tree.system_path())
    assert code == 0, lines
    assert [line for line in lines if "Rust" in line] == [
        "== the Rust router is not checked: no cargo. pytest runs the Python router only."
    ]
    assert "routers: python" in lines


def test_a_cargo_that_is_too_old_for_the_crate_is_none(checks):
    code, lines = checks(CARGO_STAND_IN="1.50.0 (old)")
    assert code == 0, lines
    assert any("Rust router is not checked: no cargo 1." in line for line in lines)
    assert any("(but 1.50.0). pytest runs" in line for line in lines)
    assert cargo_lines(lines) == []


def test_slow_selects_the_slow_lane(checks):
    code, lines = checks("--slow")
    assert code == 0
    assert "ran pytest -m slow MYPYPATH=" in lines


def test_continuous_integration_runs_the_same(tree, checks):
    tree.write("run_tests.sh", '#!/bin/sh\necho "ran with $*"\n').chmod(0o755)
    assert tree.script(".ci/run", "--slow") == (0, "ran with --slow\n")
