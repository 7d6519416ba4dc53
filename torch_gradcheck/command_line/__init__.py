"""The command `torch-gradcheck FILE.py:FUNCTION`, in one process or in those that torchrun starts."""

from torch_gradcheck.command_line.command import main

__all__ = ["main"]
