"""One tensor of a candidate beside the right one: how far rounding may move it, and whether it is further off."""
