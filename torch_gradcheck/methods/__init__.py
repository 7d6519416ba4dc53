"""The methods by which a gradient is tried: differences at every coordinate, or along random directions."""
