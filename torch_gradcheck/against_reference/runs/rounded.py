"""The reference in the candidate's dtypes, plainly and with rounding as noise: what rounding does to a right result.

Every operation rounds its result to the dtype that the reference computes it in. Where that is finer than the
candidate's, as of a reference that casts to float32, what one operation hands on to the next may be rounded to the
candidate's dtype all the same: a kernel gives bfloat16 to its matrix products, and saves bfloat16 for its backward.
Fused attention rounds its weights nowhere, other kernels do: every other run computes it step by step.
Sums are another matter: a kernel that adds up in bfloat16 where the reference does in float32 is wrong as soon as it
shows. Half of the runs take the maximum that a softmax subtracts as the constant that it is.

Where the reference cannot run in the candidate's dtype, for want of a kernel as of an LSTM in bfloat16 on many
processors, it runs in float64, and every operation rounds its result to that dtype.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_gradcheck.against_reference.runs.callers_autocast import CallersAutocast
from torch_gradcheck.against_reference.runs.computation import Computation
from torch_gradcheck.against_reference.runs.counterparts import parts_of_gradients
from torch_gradcheck.against_reference.runs.run import Run, ran
from torch_gradcheck.against_reference.runs.sides import Candidate, lent
from torch_gradcheck.against_reference.runs.subtracted_maxima import Maxima, are_constants
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.precision.rounding_noise import KernelsInMode, RoundingMode
from torch_gradcheck.request import Request
from torch_gradcheck.training_step.replay import coarsest

NOISY_RUNS = 12
"""Runs of the reference with rounding as noise. The furthest of few may be close by chance: beside a normal noise 1 of
100,000 right sums is 3 times as far off as the furthest of 13, and 1 of 1,500 as that of 7."""


HALF = NOISY_RUNS // 2
"""From this run on maxima that a softmax subtracts are constants."""

STEP = 1_000_003
"""By so much the seeds of the noise of two runs differ."""

PLAINLY = -1
"""The number of the run without noise."""


def rounded_runs(
    computation: Computation, candidate: Candidate, request: Request, start: Start, exact: Start
) -> list[Run]:
    """The runs of the reference: plainly, then with rounding as noise.

    Args:
        computation: the reference.
        candidate: whose dtypes and tensors these are.
        request: the options.
        start: the values that the reference is given in these dtypes.
        exact: those that it is given in float64.
    """
    rounded, maxima = _Rounded(computation, candidate, request, start), Maxima()
    numbers = range(PLAINLY, NOISY_RUNS)
    try:
        runs = rounded.runs(numbers, maxima, until=HALF)
    except RuntimeError as error:  # no such kernel
        if rounded.dtype is torch.float64 or CallersAutocast().note:
            raise
        rounded = replace(rounded, start=exact, refusal=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        runs = rounded.runs(numbers, maxima, until=HALF)
    left = numbers[len(runs) :]
    if not left:
        return runs
    constant = are_constants(computation, candidate, request, exact)
    return [*runs, *rounded.runs(left, Maxima(as_constants=constant))]


@dataclass(frozen=True)
class _Rounded:
    """A reference in the candidate's dtypes.

    Attributes:
        computation, candidate, request: as above.
        start: the values that the reference is given.
        refusal: why it runs in float64, and its operations round to the candidate's coarsest dtype; "" where not.
    """

    computation: Computation
    candidate: Candidate
    request: Request
    start: Start
    refusal: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest of the candidate."""
        return coarsest(self.candidate.theta)

    def runs(self, numbers: Iterable[int], maxima: Maxima, until: int | None = None) -> list[Run]:
        """The runs of these numbers, each with a noise of its own; every other one has attention step by step.

        Args:
            numbers: of the runs.
            maxima: sees those that are taken.
            until: where some are, only the runs before this one.
        """
        precision = torch.float64 if self.refusal else None
        with lent(self.computation, self.request, self.start, precision) as borrowed:
            theta = theta_of(self.computation.model, (), (), self.computation.loss.variables)
            parts = parts_of_gradients(self.candidate.theta, theta, self.computation.loss)
            forward, found = self.computation.at(precision), []
            forward = forward if self.refusal else CallersAutocast().over(forward)
            for k in numbers:
                if k == until and maxima.seen:
                    break
                with maxima, _attention_in_steps() if k % 2 and k != PLAINLY else nullcontext():
                    run = ran(forward, parts, borrowed, self._mode(k))
                found.append(replace(run, refusal=self.refusal))
            return found

    def _mode(self, number: int) -> AbstractContextManager[object] | None:
        generator = torch.Generator("cpu").manual_seed((self.request.seed + (number + 1) * STEP) % 2**63)
        if not self.refusal:
            return None if number == PLAINLY else RoundingMode(generator, self.dtype)
        mode = KernelsInMode(torch.float64, self.dtype, None if number == PLAINLY else generator)
        mode.drawn_in = self.candidate.drawn_in
        return mode


def _attention_in_steps() -> AbstractContextManager[Any]:
    """Has scaled dot product attention compute its weights by operations of their own, which round: one is no noise."""
    return sdpa_kernel(SDPBackend.MATH)
