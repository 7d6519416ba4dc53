"""Right, wrong, kink or undecided: entry by entry, then tensor by tensor."""
