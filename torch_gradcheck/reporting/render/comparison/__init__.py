"""A comparison of two reports as text and as HTML."""
