"""The traced engine: exact checks at machine speed, from one record of J."""
