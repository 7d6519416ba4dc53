"""Every use of torch that is not public, each behind a named function with a test that says what it is for.

Where torch renames or removes something, it is missed here and nowhere else.
"""
