"""What the reader of a report should know besides its rows, a sentence each."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch_gradcheck.engines.selection import on_engine, whom
from torch_gradcheck.methods.exact import on_step
from torch_gradcheck.methods.problem import Numerical
from torch_gradcheck.methods.projected.method import on_directions
from torch_gradcheck.objective.by_design import remarks_on
from torch_gradcheck.objective.objective import Objective, on_graph, on_overridden, on_spread
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.request import Request
from torch_gradcheck.verdicts.rows import on_unproven


def notes_of(
    rows: Sequence[ParameterReport], objective: Objective, numerical: Numerical, asked: Request, method: str
) -> list[str]:
    """The notes on the step, on overridden precisions, on how J had to be evaluated, and on what was not proven."""
    projected = method == "projected"
    notes = [
        on_directions(rows) if projected else on_step(rows, numerical.noise, asked),
        on_engine(numerical.engine, objective.model, "" if projected else whom(numerical.engine, rows)),
        on_overridden(objective),
        on_graph(objective),
        on_spread(objective),
        on_unproven(rows),
    ]
    return [note for note in notes if note] + remarks_on(objective.model)


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
