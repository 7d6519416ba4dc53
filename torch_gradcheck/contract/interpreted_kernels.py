"""What Triton's interpreter leaves behind: it keeps the memory of a kernel's arguments in circles of its own.

On a GPU nothing of that is there. Two functions inside of its `GridExecutor` call themselves, and so hold themselves,
and beside themselves a table of storages.
"""

from __future__ import annotations

import gc
import sys
from types import FunctionType

INTERPRETER = "triton.runtime.interpreter"
"""The module; nothing is interpreted where it is not loaded."""


def open_circles_of_interpreter() -> None:
    """Takes apart what the interpreter has left for the garbage collector; all other garbage stays as it is."""
    if INTERPRETER not in sys.modules:
        return
    for left in _garbage():
        if type(left) is FunctionType and left.__module__ == INTERPRETER:
            for cell in left.__closure__ or ():
                del cell.cell_contents


def _garbage() -> list[object]:
    """All that only the garbage collector would free, kept from it."""
    before, flags = len(gc.garbage), gc.get_debug()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
    finally:
        gc.set_debug(flags)
        found = gc.garbage[before:]
        del gc.garbage[before:]
    return found
