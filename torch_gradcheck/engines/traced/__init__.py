"""The traced engine: J recorded once, then evaluated for many perturbations at a time."""
