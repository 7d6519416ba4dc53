"""The exit statuses of the command."""

PASSED, MISMATCH, COULD_NOT_CHECK, NOT_PROVEN = 0, 1, 2, 3

INTERRUPTED = 130
"""What Ctrl-C has ended, as in any shell."""
