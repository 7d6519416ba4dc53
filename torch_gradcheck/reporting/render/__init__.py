"""The facts of a check put into form: plain text, HTML and JSON."""
