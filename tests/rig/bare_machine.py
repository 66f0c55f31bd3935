"""A machine without cargo and without a built router, and what a test adds to it."""

import json
import sys
from pathlib import Path
from typing import Any

STAND_IN = Path(__file__).parents[1] / "scripts/stand_in.py"
# Takes the place of the Rust router: takes any flags, prints its address, answers /health.
RUST = f"""#!/bin/sh
[ "$1" = --help ] && exit
echo "rust stand-in $*"
exec "{sys.executable}" "{STAND_IN}"
"""
# Takes the place of cargo; `build` runs the shell commands in $BUILD.
CARGO = """#!/bin/sh
[ "$1" = --version ] && { echo "cargo ${CARGO_STAND_IN-1.99.0 (of tests)}"; exit; }
echo "   Compiling stand-in v1.2.3 with $*"
while [ "$1" != --target-dir ]; do shift; done
target=$2/${CARGO_BUILD_TARGET:+$CARGO_BUILD_TARGET/}release
eval "$BUILD"
"""
INSTALL = f"""mkdir -p "$target"
cat >"$target/infini-router" <<'END'
{RUST}
END
chmod +x "$target/infini-router"
"""
FAIL = "echo 'error[E0425]: cannot find it'; exit 101"


def configure(tree: Any, **settings: object) -> None:
    given = {key: value for key, value in settings.items() if value is not None}
    tree.write(
        "deployment_configs/router_config.json",
        json.dumps({"router": {"drain_delay": 0, **given}}),
    )


def add_cargo(tree: Any) -> None:
    cargo = tree.program("cargo's folder/cargo", CARGO)
    tree.env["PATH"] = tree.system_path(cargo.parent)


def build_earlier(tree: Any) -> None:
    tree.program("router-rust/target/release/infini-router", RUST)


def install(tree: Any) -> None:
    program = tree.program("an environment/bin/infini-router", RUST)
    tree.env["PATH"] = tree.system_path(program.parent)


def failing_build(tree: Any) -> None:
    add_cargo(tree)
    build_earlier(tree)  # of sources that are not these any more
    tree.env["BUILD"] = FAIL


def launched(tree: Any, *arguments: str, **env: str) -> str:
    """The line that says what is started, after a launch that works; what it says must be true."""
    code, output = tree.script("launch_router.sh", *arguments, **env)
    assert code == 0, output
    said = [line for line in output.splitlines() if line.startswith("router: using ")]
    assert len(said) == 1, output
    assert running_implementation(tree) == said[0].split()[2]
    assert tree.script("stop_router.sh")[0] == 0
    return said[0].removeprefix("router: using ")


def running_implementation(tree: Any) -> str:
    command = Path(f"/proc/{tree.pid('router')}/cmdline").read_text()
    return "python" if "distributed_router.py" in command else "rust"
