"""Start the InfiniLM-SVC service registry: `python registry/service_registry.py --port 8081`."""

import sys

from infinilm_registry.cli import main

if __name__ == "__main__":
    sys.exit(main())
