"""`python -m infinilm_registry` starts the registry."""

import sys

from infinilm_registry.cli import main

if __name__ == "__main__":
    sys.exit(main())
