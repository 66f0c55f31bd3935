"""Errors, header rules and clocks."""
