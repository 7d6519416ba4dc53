"""The compiled code of a candidate: it runs compiled, as with its caller, and nothing of what is compiled stays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import CodeType

import torch

from torch_gradcheck.against_reference.runs.computation import Computation
from torch_gradcheck.borrowing.captures import captures_of
from torch_gradcheck.gradients.compiled_parts import CompiledPart, MetParts, with_backends
from torch_gradcheck.torch_internals.compiler import CompiledCall, CompiledCode, compiled_calls, compiler_as_it_was
from torch_gradcheck.torch_internals.modules import compiler_is_imported
from torch_gradcheck.torch_internals.scripted import is_scripted


@dataclass(frozen=True)
class CompiledParts:
    """What of a candidate torch.compile was given.

    Attributes:
        parts: those that were called.
        ran: whether any of them has run compiled.
    """

    parts: Sequence[CompiledPart] = ()
    ran: bool = False


class AsCompiled:
    """A block in which what torch.compile was given runs compiled; a loan has it run eagerly otherwise.

    Casts are not raised, and no mode may be in force, which would be compiled in.

    Args:
        computation: of the candidate.
        only: the keys of the parts that run compiled, while others are met and run eagerly; None for all parts.

    Attributes:
        found: after the block, what torch.compile was given and was called inside of it.
    """

    def __init__(self, computation: Computation, only: Collection[int] | None = None) -> None:
        self._met = MetParts(computation.model, computation.loss.words.culprit)
        self._only = only
        self._code: CompiledCode | None = None
        self._called: list[CodeType] = []
        self._undo = ExitStack()
        self.found = CompiledParts()

    def __enter__(self) -> AsCompiled:
        if compiler_is_imported():
            self._undo.enter_context(compiler_as_it_was(draws_as_eager=True))
            self._code = CompiledCode()
            self._undo.enter_context(compiled_calls(self._runs_compiled))
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            ran = self._code is not None and self._code.ran(self._called)
            self.found = CompiledParts(list(self._met), ran)
        finally:
            self._undo.close()

    def _runs_compiled(self, call: CompiledCall) -> bool:
        self._met.meet(call)
        if self._only is not None and call.key not in self._only:
            return False
        self._called.append(call.code)
        return True


def on_compiled(code: CompiledParts) -> str:
    """The note on what of a candidate ran compiled; "" where torch.compile was given nothing of it."""
    if not code.parts:
        return ""
    parts = with_backends(code.parts)
    if not code.ran:
        return f"torch.compile left the candidate as it is, nothing in it ran compiled: {parts}"
    return (
        f"on trial is compiled code, in the candidate's own precision: {parts}; the reference ran eagerly, and so did "
        "the candidate for the entries of its contract"
    )


def on_scripted(candidate: Computation) -> str:
    """The note on code of torch.jit, which a loan runs as it is written; "" without such."""
    holders = [candidate.model, *candidate.loss.holders]
    functions = [each for each in holders if isinstance(each, torch.jit.ScriptFunction)]
    modules = [each for each in captures_of(*holders).modules.values() if is_scripted(each)]
    if not (functions or modules):
        return ""
    return "code of torch.jit ran as it is written: its optimiser was off, and what that fuses is not on trial"
