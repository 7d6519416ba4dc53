"""What is wrong and where: runs only after a mismatch."""
