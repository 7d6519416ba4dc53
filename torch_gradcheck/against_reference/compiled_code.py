"""The compiled code of a candidate: it runs compiled, as with its caller, and nothing of what is compiled stays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from types import CodeType

from torch_gradcheck.against_reference.computation import Computation
from torch_gradcheck.gradients.compiled_parts import CompiledPart, MetParts
from torch_gradcheck.torch_internals.compiler import CompiledCall, CompiledCode, compiled_calls, compiler_as_it_was
from torch_gradcheck.torch_internals.modules import compiler_is_imported


class AsCompiled:
    """A block in which what torch.compile was given runs compiled; a loan has it run eagerly otherwise.

    Casts are not raised, and no mode may be in force, which would be compiled in.

    Args:
        computation: of the candidate.
        only: the keys of the parts that run compiled, while others are met and run eagerly; None for all parts.

    Attributes:
        parts: what torch.compile was given and was called inside the block.
        compiled: whether any of it has run compiled.
    """

    def __init__(self, computation: Computation, only: Collection[int] | None = None) -> None:
        self._met = MetParts(computation.model, computation.loss.words.culprit)
        self._only = only
        self._code: CompiledCode | None = None
        self._called: list[CodeType] = []
        self._undo = ExitStack()
        self.compiled = False

    def __enter__(self) -> AsCompiled:
        if compiler_is_imported():
            self._undo.enter_context(compiler_as_it_was(draws_as_eager=True))
            self._code = CompiledCode()
            self._undo.enter_context(compiled_calls(self._runs_compiled))
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.compiled = self._code is not None and self._code.ran(self._called)
        finally:
            self._undo.close()

    @property
    def parts(self) -> Sequence[CompiledPart]:
        """See the class."""
        return list(self._met)

    def _runs_compiled(self, call: CompiledCall) -> bool:
        self._met.meet(call)
        if self._only is not None and call.key not in self._only:
            return False
        self._called.append(call.code)
        return True
