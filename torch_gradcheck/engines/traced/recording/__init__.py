"""Records J once, as operations on numbered values: views and in-place writes are resolved."""
