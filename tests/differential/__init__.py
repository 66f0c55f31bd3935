"""Both routers get the same bytes from clients and engines: whatever differs is a fault."""
