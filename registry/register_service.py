"""Register, list and remove services by hand: `python registry/register_service.py --help`."""

import sys

from infinilm_registry.register import main

if __name__ == "__main__":
    sys.exit(main())
