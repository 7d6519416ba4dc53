"""A step of several ranks: what each of them computed, sent to all, and the mistakes in putting it together."""
