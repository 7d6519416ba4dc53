"""The gradient on trial, flat in float64 by parameter; each source of one is a file."""
