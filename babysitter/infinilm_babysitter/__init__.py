"""Babysitter: starts an engine, keeps it alive, registers it, stops it without losing answers."""
