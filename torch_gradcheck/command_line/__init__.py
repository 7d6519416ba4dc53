"""The command `torch-gradcheck FILE.py:FUNCTION`, in one process or in those that torchrun starts, and `compare`."""

from torch_gradcheck.command_line.entry import main

__all__ = ["main"]
