"""An old report beside a new one: what became wrong, worse, right or better."""
