"""J(θ): one deterministic scalar function of the borrowed parameters."""
