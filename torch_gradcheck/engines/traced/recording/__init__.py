"""Records J once: operations on numbered values, whichever views and in-place writes they came about by."""
