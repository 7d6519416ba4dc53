"""What else holds of a function that others call inside their models, besides its gradient: one file an entry."""
