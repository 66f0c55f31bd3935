"""Reusable parts of the black-box tests: programs, fake engines, load, raw sockets."""
