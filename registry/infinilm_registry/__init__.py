"""The registry: which engines exist, where they are, and whether they are alive."""
