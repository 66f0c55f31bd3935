"""The endpoints that the router answers itself, one family per file."""

from infinilm_router.handlers.routes import find_handler

__all__ = ["find_handler"]
