"""Number formats: their names and machine epsilons, and computations that are kept in one of them."""
