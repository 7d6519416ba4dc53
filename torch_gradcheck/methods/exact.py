"""The exact method: a centered difference at every coordinate, as in the lecture."""

from __future__ import annotations

from collections.abc import Sequence

from torch_gradcheck.differences.noise import SIGMAS, Noise
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.request import Request

LECTURE_EPS = 1e-7


def on_step(rows: Sequence[ParameterReport], noise: Noise, asked: Request) -> str:
    """The note on the step of the differences; "" where none was taken, or a given one suits."""
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
