"""A model lent for a check: copies take the place of everything it holds, and it comes back bit for bit."""
