"""The model is borrowed: everything it holds is set aside, copies take its place, and it comes back bit for bit."""
