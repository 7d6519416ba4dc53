"""What is tried, and how much of it: every coordinate, or random directions."""
