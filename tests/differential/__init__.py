"""Both routers get the same bytes from the same clients and engines: whatever differs is a fault."""
