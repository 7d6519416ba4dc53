"""A candidate in its own precision beside a reference: outputs and gradients, as right as that precision allows."""
