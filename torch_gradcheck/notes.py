"""What the reader of a report should know besides its rows, a sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from torch_gradcheck.deliberate import remarks_on
from torch_gradcheck.differences.ladder import SIGMAS, Noise
from torch_gradcheck.differences.odds import ODDS
from torch_gradcheck.engines.chosen import ChosenEngine, module_name_of
from torch_gradcheck.facts import ParameterReport, Status
from torch_gradcheck.numerical import Numerical
from torch_gradcheck.objective import Objective
from torch_gradcheck.request import Request

LECTURE_EPS = 1e-7


def notes_of(
    rows: Sequence[ParameterReport], objective: Objective, numerical: Numerical, asked: Request, method: str
) -> list[str]:
    """The notes on the step, on overridden precisions, on how J had to be evaluated, and on what was not proven."""
    projected = method == "projected"
    notes = [
        _on_directions(rows) if projected else _on_step(rows, numerical.noise, asked),
        _on_engine(numerical.engine, objective.model, "" if projected else _whom(numerical.engine, rows)),
        _on_overridden(objective),
        _on_graph(objective),
        _on_spread(objective),
        _on_unproven(rows),
    ]
    return [note for note in notes if note] + remarks_on(objective.model)


def _on_step(rows: Sequence[ParameterReport], noise: Noise, asked: Request) -> str:
    steps = sorted({row.eps for row in rows if row.checked})
    if not steps:
        return ""
    if asked.eps is None:
        listed = f"{steps[0]:.1e}" if len(steps) == 1 else f"{steps[0]:.1e} to {steps[-1]:.1e}"
        return (
            f"eps = {listed} · max(1, |θ|) instead of the lecture's 1e-07: J has noise {noise.sigma:.0e}, "
            f"which would put {_bar(noise, LECTURE_EPS):.0e} on every derivative there"
        )
    drowned = [row for row in rows if row.checked and _bar(noise, asked.eps) > asked.tolerance * _typical(row)]
    if not drowned:
        return ""
    return (
        f"eps = {asked.eps:g} drowns in noise for {len(drowned)} of {len(rows)} parameters: J has noise "
        f"{noise.sigma:.0e}, which puts {_bar(noise, asked.eps):.0e} on every derivative; leave eps out"
    )


def _bar(noise: Noise, step: float) -> float:
    return SIGMAS * max(noise.sigma, noise.epsilon / 2 * abs(noise.at_zero)) / step


def _typical(row: ParameterReport) -> float:
    return max((abs(coordinate.numeric) for coordinate in row.worst), default=0.0)


def _on_overridden(objective: Objective) -> str:
    if not objective.overridden:
        return ""
    modules = sorted(
        {name or "the model's forward or the loss" for names in objective.overridden.values() for name in names}
    )
    precision = str(objective.dtype).removeprefix("torch.")
    return (
        f"casts and tensors of a lower precision were computed in {precision} "
        f"({', '.join(sorted(objective.overridden))}) in {_named(modules)}"
    )


def _on_graph(objective: Objective) -> str:
    if objective.takes_accumulated:
        return "the closure calls backward() itself: what it leaves in .grad is what was checked"
    if objective.needs_graph:
        return "J was evaluated with autograd on: without it, it cannot be computed or is another function"
    return ""


def _on_directions(rows: Sequence[ParameterReport]) -> str:
    verified = [row for row in rows if row.status is Status.MATCH and row.directions]
    if not verified:
        return ""
    least = max(verified, key=lambda row: row.detectable)
    entries = sum(row.checked for row in verified)
    return (
        f"{entries:,} entries were compared with a gradient that J's slopes along {least.directions} random directions "
        f"bear out: an error of {least.detectable:.0e} of the gradient of any tensor would have been missed with odds "
        f"of {ODDS:.0e}"
    )


def _on_engine(engine: ChosenEngine, model: nn.Module, whom: str) -> str:
    if not engine.refused:
        return ""
    refusal = next(iter(engine.refused.values()))
    where = module_name_of(refusal, model)
    told = (
        f"evaluated one coordinate at a time for {whom}" if whom else "J's slopes verified the gradient on trial itself"
    )
    return f"{told}: {refusal}{f' (in {where})' if where else ''}"


def _whom(engine: ChosenEngine, rows: Sequence[ParameterReport]) -> str:
    """The parameters that had to be evaluated one coordinate at a time."""
    if None in engine.refused:
        return "every parameter"
    return _named([rows[position].name for position in engine.refused if position is not None])


def _on_spread(objective: Objective) -> str:
    if not objective.spread:
        return ""
    return f"two equal calls differ by {objective.spread:.0e}, within roundoff: taken as noise of J"


def _on_unproven(rows: Sequence[ParameterReport]) -> str:
    unproven = [row.name for row in rows if row.status in (Status.FLAT, Status.UNDECIDED)]
    if not unproven:
        return ""
    return f"not proven right: {_named(unproven)}; see the reason of each"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
