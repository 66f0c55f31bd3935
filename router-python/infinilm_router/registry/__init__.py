"""Reading service registries."""
