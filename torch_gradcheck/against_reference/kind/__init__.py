"""What kind of mistake is in a wrong tensor of a candidate, from its numbers."""
