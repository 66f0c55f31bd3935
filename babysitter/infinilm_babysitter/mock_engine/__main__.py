"""Run the mock engine: `python -m infinilm_babysitter.mock_engine --models mock-model`."""

import sys

from infinilm_babysitter.mock_engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
