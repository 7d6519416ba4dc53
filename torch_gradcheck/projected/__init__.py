"""Gradients too long for a difference at every entry: verified along random directions, accused by single ones."""
