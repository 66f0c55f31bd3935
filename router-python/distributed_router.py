#!/usr/bin/env python3
"""The router: one OpenAI-compatible endpoint in front of many engines. See --help."""

import sys

from infinilm_router.cli import main

if __name__ == "__main__":
    sys.exit(main())
