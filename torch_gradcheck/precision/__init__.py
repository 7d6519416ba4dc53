"""Number formats: what they are called, how coarse they are, and how a computation is kept in one of them."""
