"""The version of this package, and nothing else: the build reads it without importing torch."""

from __future__ import annotations

__version__ = "0.1.0"
