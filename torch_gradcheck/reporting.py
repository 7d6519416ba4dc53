"""Puts a report together: what was found, and the circumstances it was found under."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch_gradcheck.facts import ParameterReport
from torch_gradcheck.numerical import Numerical
from torch_gradcheck.objective import Objective
from torch_gradcheck.report import Report
from torch_gradcheck.request import Request


def reported(
    rows: Sequence[ParameterReport],
    objective: Objective,
    numerical: Numerical,
    asked: Request,
    *,
    method: str,
    started: float,
    relative_error: float,
    notes: list[str],
    culprit: str | None = None,
) -> Report:
    """The report of a check that ends now.

    Args:
        rows: one for every parameter, in the order of the model.
        objective: J, as often as it has been evaluated.
        numerical: the reference, with the noise of J.
        asked: the options.
        method: "exact" or "projected".
        started: `time.perf_counter()` at the beginning.
        relative_error: the lecture's, over all of θ.
        notes: in the order they are told.
        culprit: where the mistake is, if that is known.
    """
    return Report(
        parameters=tuple(rows),
        relative_error=relative_error,
        loss=objective.loss,
        method=method,
        evaluations=objective.evaluations,
        seconds=time.perf_counter() - started,
        tolerance=asked.tolerance,
        dtype=str(asked.dtype).removeprefix("torch."),
        mode=asked.mode,
        seed=asked.seed,
        noise=numerical.noise.sigma,
        culprit=culprit,
        notes=notes,
    )
