"""Sessions of pytest that use the plugin, and its parts one by one."""
