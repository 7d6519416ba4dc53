"""What the report says of compiled code: that it is on trial, and whether the compiler makes the mistake."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from torch_gradcheck.against_reference.computation import Computation
from torch_gradcheck.against_reference.judge import Judged
from torch_gradcheck.against_reference.sides import Candidate
from torch_gradcheck.borrowing.captures import captures_of
from torch_gradcheck.gradients.compiled_parts import CompiledPart, with_backends
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.scripted import is_scripted

MOST_PARTS = 64
"""How many compiled parts are compiled alone, at most."""


@dataclass(frozen=True)
class CompilerFound:
    """What running the candidate eagerly says of a mistake.

    Attributes:
        culprit: the name of what is compiled wrongly; None where that is nothing, or cannot be told.
        notes: the sentences on it.
    """

    culprit: str | None = None
    notes: tuple[str, ...] = ()


def compiler_found(
    found: Candidate, verdicts: Sequence[Judged], judged_with: Callable[[Collection[int]], Sequence[Judged]]
) -> CompilerFound:
    """Whether what is wrong is so by compiled code alone; nothing where all is right, or nothing ran compiled.

    Args:
        found: the candidate's runs.
        verdicts: on each of its tensors.
        judged_with: the verdicts where only the parts with these keys run compiled.
    """
    wrong = _wrong(verdicts)
    if not wrong or not found.compiled:
        return CompilerFound()
    by_compiler = [name for name in wrong if name not in _wrong(judged_with(()))]
    if not by_compiler:
        return CompilerFound(notes=("the candidate is wrong where it runs eagerly, too: not the compiler is at fault",))
    guilty = _guilty(found.parts, by_compiler, judged_with)
    return CompilerFound(guilty[0].name if guilty else None, (_sentence(guilty, found.parts, by_compiler),))


def _sentence(guilty: Sequence[CompiledPart], parts: Sequence[CompiledPart], wrong: Sequence[str]) -> str:
    named = guilty or parts
    backends = listed(list(dict.fromkeys(part.backend for part in named)))
    together = "" if guilty else " compiled together"
    return (
        f"the compiler ({backends}) makes the mistake, in {listed([part.words for part in named])}{together}: where "
        f"the candidate runs eagerly, {listed(wrong)} {'is' if len(wrong) == 1 else 'are'} right"
    )


def _guilty(
    parts: Sequence[CompiledPart],
    by_compiler: Collection[str],
    judged_with: Callable[[Collection[int]], Sequence[Judged]],
) -> list[CompiledPart]:
    """The parts that make the mistake when they alone are compiled, in the order in which they are called."""
    if len(parts) == 1:
        return list(parts)
    return [part for part in parts[:MOST_PARTS] if set(_wrong(judged_with([part.key]))) & set(by_compiler)]


def _wrong(verdicts: Sequence[Judged]) -> list[str]:
    return [each.compared.entry.name for each in verdicts if each.is_wrong]


def on_compiled(candidate: Candidate) -> list[str]:
    """The note on what of the candidate ran compiled; none where torch.compile was given nothing of it."""
    if not candidate.parts:
        return []
    parts = with_backends(candidate.parts)
    if not candidate.compiled:
        return [f"torch.compile left the candidate as it is, nothing in it ran compiled: {parts}"]
    return [f"on trial is compiled code, in the candidate's own precision: {parts}; the reference ran eagerly"]


def on_scripted(candidate: Computation) -> list[str]:
    """The note on code of torch.jit, which a loan runs as it is written; none without such."""
    holders = [candidate.model, *candidate.loss.holders]
    functions = [each for each in holders if isinstance(each, torch.jit.ScriptFunction)]
    modules = [each for each in captures_of(*holders).modules.values() if is_scripted(each)]
    if not (functions or modules):
        return []
    return ["code of torch.jit ran as it is written: its optimiser was off, and what that fuses is not on trial"]
