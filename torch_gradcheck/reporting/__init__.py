"""What the user sees: the facts of a check, the report that holds them, and its forms as text, HTML and JSON."""
