"""`python -m infinilm_babysitter`: the same program as enhanced_babysitter.py."""

from infinilm_babysitter.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
