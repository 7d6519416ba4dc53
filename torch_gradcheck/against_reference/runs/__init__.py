"""The runs of both sides: the candidate as it is; the reference in float64, and in those dtypes with noise."""
