"""Where a wrong candidate goes wrong: module by module, and whether the compiler makes the mistake."""
