"""Whether the compiler makes the mistake: the candidate again with its parts eager, and each compiled alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from torch_gradcheck.against_reference.judging.judge import Judged
from torch_gradcheck.against_reference.pair import Pair, judged_pair
from torch_gradcheck.against_reference.runs.run import Run
from torch_gradcheck.against_reference.runs.sides import Candidate
from torch_gradcheck.diagnosis.culprit.attribution import Culprit
from torch_gradcheck.gradients.compiled_parts import CompiledPart
from torch_gradcheck.reporting.words import listed

MOST_PARTS = 64
"""How many compiled parts are compiled alone, at most."""


def compiler_at_fault(pair: Pair, found: Candidate, verdicts: Sequence[Judged], exact: Sequence[Run]) -> Culprit | None:
    """The compiled part that is wrong where its eager code is right; None where that is none.

    Args:
        pair: whose candidate is run anew.
        found: its runs.
        verdicts: on each of its tensors.
        exact: of the reference, see `judged_pair`.
    """
    wrong, parts = _wrong(verdicts), found.compiled_code.parts
    if not wrong or not found.compiled_code.ran:
        return None

    def wrong_with(keys: Collection[int]) -> list[str]:
        again = replace(pair, compiled=keys)
        return _wrong(judged_pair(again, again.candidate_runs(), exact)[0])

    eager = wrong_with(())
    by_compiler = [name for name in wrong if name not in eager]
    if not by_compiler:
        return None
    guilty = _guilty(parts, by_compiler, wrong_with)
    return Culprit(guilty[0].name if guilty else None, (_sentence(guilty, parts, by_compiler),))


def _guilty(
    parts: Sequence[CompiledPart], by_compiler: Collection[str], wrong_with: Callable[[Collection[int]], list[str]]
) -> list[CompiledPart]:
    """The parts that make the mistake when they alone are compiled, in the order in which they are called."""
    if len(parts) == 1:
        return list(parts)
    return [part for part in parts[:MOST_PARTS] if set(wrong_with([part.key])) & set(by_compiler)]


def _sentence(guilty: Sequence[CompiledPart], parts: Sequence[CompiledPart], wrong: Sequence[str]) -> str:
    named = guilty or parts
    backends = listed(list(dict.fromkeys(part.backend for part in named)))
    together = "" if guilty else " compiled together"
    return (
        f"the compiler ({backends}) makes the mistake, in {listed([part.words for part in named])}{together}: where "
        f"the candidate runs eagerly, {listed(wrong)} {'is' if len(wrong) == 1 else 'are'} right"
    )


def _wrong(verdicts: Sequence[Judged]) -> list[str]:
    return [each.compared.entry.name for each in verdicts if each.is_wrong]
