"""The verdicts on a kernel without what does not depend on rounding: the check of its reference, and the contract.

The kernel is one that gives the same in every run, and is run once. So a kernel can be tried on many inputs in the time
that a check takes for a few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch_gradcheck.against_reference.judging.judge import Judged
from torch_gradcheck.against_reference.pair import Pair, judged_pair
from torch_gradcheck.against_reference.runs.computation import FunctionComputation
from torch_gradcheck.against_reference.runs.counterparts import counterparts_of
from torch_gradcheck.against_reference.runs.sides import exact_run
from torch_gradcheck.against_reference.runs.upstream import Upstream
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.methods.posing import posed
from torch_gradcheck.objective.function_call import function_call
from torch_gradcheck.objective.function_loss import FunctionLoss, WrittenArgumentsError
from torch_gradcheck.request import Request


def verdicts_of(function: Callable[..., Any], inputs: Any, reference: Callable[..., Any], seed: int) -> list[Judged]:
    """Those of `check_function(function, inputs, reference=reference, seed=seed)`."""
    upstream = Upstream(seed)
    own, other = [
        FunctionComputation(FunctionLoss(call, seed, skips_infinities=True), upstream)
        for call in (function_call(function, inputs, in_its_memory=True), function_call(reference, inputs))
    ]
    try:
        return _verdicts(own, other, seed)
    except WrittenArgumentsError:
        return _verdicts(own.on_copies(), other.on_copies(), seed)


def _verdicts(candidate: FunctionComputation, reference: FunctionComputation, seed: int) -> list[Judged]:
    request = Request(None, "exact", None, 1e-5, (), (), "keep", torch.float64, seed, False)
    pair = Pair(candidate, reference, request, counterparts_of(candidate.model, reference.model, {}))
    found, start = pair.candidate_runs(1), Start(values=pair.counterparts.exact)
    with posed(reference.model, reference.loss, request, start=start, drawn_in=found.drawn_in) as problem:
        _ = problem.objective
        exact = [exact_run(problem, each, found) for each in [reference, *reference.alone().values()]]
    return judged_pair(pair, found, exact)[0]
