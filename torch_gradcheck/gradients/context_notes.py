"""A note on an error of Python's that comes of what the forward of a Function has not kept for its backward.

Such an error is the user's own and comes through; the note is shown below it.
"""

from __future__ import annotations

import linecache
from contextlib import suppress
from types import TracebackType

from torch.autograd.function import FunctionCtx

from torch_gradcheck.tracebacks import entries_of


def note_what_is_missing(error: Exception) -> None:
    """Adds a note to an error that Python has raised at a `ctx` without the attribute, or the tensors, asked for."""
    entries = entries_of(error)
    if not entries or type(error) not in (AttributeError, IndexError, ValueError):
        return
    note = _on_attribute(error) if isinstance(error, AttributeError) else _on_saved(entries[-1])
    if note and note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _on_attribute(error: AttributeError) -> str:
    if not isinstance(error.obj, FunctionCtx):
        return ""
    kept = ", ".join(sorted(vars(error.obj))) or "nothing"
    return f"ctx has no {error.name!r}: what forward has kept there is {kept}."


def _on_saved(entry: TracebackType) -> str:
    """The note where the line that has raised takes saved tensors from `ctx`."""
    code = entry.tb_frame.f_code
    context = next((each for each in entry.tb_frame.f_locals.values() if isinstance(each, FunctionCtx)), None)
    if context is None or "saved_tensors" not in linecache.getline(code.co_filename, entry.tb_lineno):
        return ""
    with suppress(RuntimeError):  # freed, or written to since
        count = len(context.saved_tensors)  # type: ignore[attr-defined]
        held = f"{count} tensor{'' if count == 1 else 's'}" if count else "nothing"
        return f"ctx.saved_tensors has {held}: forward saves by ctx.save_for_backward(x, w), once, all together."
    return ""
