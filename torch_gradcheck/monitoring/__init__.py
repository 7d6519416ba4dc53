"""Checks from inside a training loop, on scheduled steps."""
