"""The reference in the candidate's dtypes, plainly and with rounding as noise: what rounding does to a right result.

Every operation rounds its result to the dtype that the reference computes it in. Where that is finer than the
candidate's, as of a reference that casts to float32, what one operation hands on to the next may be rounded to the
candidate's dtype all the same: a kernel gives bfloat16 to its matrix products, and saves bfloat16 for its backward.
Fused attention rounds its weights nowhere, other kernels do: every other run computes it step by step.
Sums are another matter: a kernel that adds up in bfloat16 where the reference does in float32 is wrong as soon as it
shows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_gradcheck.against_reference.runs.callers_autocast import CallersAutocast
from torch_gradcheck.against_reference.runs.computation import Computation
from torch_gradcheck.against_reference.runs.counterparts import parts_of_gradients
from torch_gradcheck.against_reference.runs.run import Run, ran
from torch_gradcheck.against_reference.runs.sides import Candidate, lent
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.precision.rounding_noise import RoundingMode
from torch_gradcheck.request import Request
from torch_gradcheck.training_step.replay import coarsest

NOISY_RUNS = 12
"""Runs of the reference with rounding as noise. The furthest of few may be close by chance: beside a normal noise 1 of
100,000 right sums is 3 times as far off as the furthest of 13, and 1 of 1,500 as that of 7."""


def rounded_runs(computation: Computation, candidate: Candidate, request: Request, start: Start) -> list[Run]:
    """The runs of the reference: plainly, then with rounding as noise."""
    generator, autocast = torch.Generator("cpu").manual_seed(request.seed), CallersAutocast()
    with lent(computation, request, start) as borrowed:
        theta, between = theta_of(computation.model, (), (), computation.loss.variables), coarsest(candidate.theta)
        parts = parts_of_gradients(candidate.theta, theta, computation.loss)
        forward = autocast.over(computation.at(None))
        runs = [ran(forward, parts, borrowed)]
        for k in range(NOISY_RUNS):
            with _attention_in_steps() if k % 2 else nullcontext():
                runs.append(ran(forward, parts, borrowed, RoundingMode(generator, between)))
        return runs


def _attention_in_steps() -> AbstractContextManager[Any]:
    """Has scaled dot product attention compute its weights by operations of their own, which round: one is no noise."""
    return sdpa_kernel(SDPBackend.MATH)
