"""The endpoints that the router answers itself, one family per file."""
