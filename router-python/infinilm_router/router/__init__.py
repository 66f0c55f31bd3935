"""Which engines there are, how they are, and which one serves a request."""
