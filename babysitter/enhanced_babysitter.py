#!/usr/bin/env python3
"""Start an engine, keep it alive, and tell the registry about it. `--help` lists the flags."""

from infinilm_babysitter.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
