"""`python -m infinilm_router`: the same as distributed_router.py."""

import sys

from infinilm_router.cli import main

if __name__ == "__main__":
    sys.exit(main())
