"""How a session of pytest that a test starts comes to the plugin."""

from __future__ import annotations

from importlib.metadata import entry_points

NAME = "torch_gradcheck"

IS_INSTALLED = any(point.name == NAME for point in entry_points(group="pytest11"))
"""Whether pytest finds the plugin by itself, as where the package is installed."""

PLUGIN = [] if IS_INSTALLED else ["-p", "torch_gradcheck.pytest_plugin"]
"""The words that load it where pytest does not."""
