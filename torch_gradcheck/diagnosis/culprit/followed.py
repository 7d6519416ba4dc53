"""The wrong coordinates that the search for a culprit follows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from torch_gradcheck.diagnosis.culprit.tangents import WrongCoordinate
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.verdicts.entry_check import Outcome
from torch_gradcheck.verdicts.trial import ParameterTrial

MOST_FOLLOWED = 3
"""How many wrong coordinates are followed, at most."""

SAME_MISTAKE = 0.02
"""Two gradients that differ by at most 2 % of E have the same mistake."""


def followed(
    theta: Theta, trials: Mapping[int, ParameterTrial], autograd: Mapping[int, AnalyticGradient] | None
) -> list[WrongCoordinate]:
    """The worst coordinate each of the worst, the first and the last wrong parameter.

    Given gradients count only where autograd's own gradient (`autograd`) has the same mistake.
    """
    candidates = [
        each
        for position, trial in trials.items()
        if (each := worst_of(theta, position, trial, autograd[position] if autograd else None)) is not None
    ]
    by_size = sorted(candidates, key=relative_error, reverse=True)
    return list(dict.fromkeys([*by_size[:1], *candidates[:1], *candidates[-1:]]))[:MOST_FOLLOWED]


def relative_error(wrong: WrongCoordinate) -> float:
    """|E| relative to both gradients; −1 where E is not finite."""
    size = abs(wrong.analytic) + abs(wrong.numeric)
    return abs(wrong.error) / size if math.isfinite(wrong.error) else -1.0


def worst_of(
    theta: Theta, position: int, trial: ParameterTrial, autograd: AnalyticGradient | None
) -> WrongCoordinate | None:
    """The coordinate of one parameter that is off by most; None where none is, or `autograd` has another mistake."""
    results = trial.results
    mismatched = np.flatnonzero((results.outcome == Outcome.MISMATCH) & np.isfinite(results.numeric))
    if not len(mismatched):
        return None
    with np.errstate(all="ignore"):
        off = np.abs(trial.analytic[mismatched] - results.numeric[mismatched])
    k = int(mismatched[np.argmax(np.nan_to_num(off, nan=np.inf))])
    coordinate, error_bar = int(trial.coordinates[k]), float(results.error_bar[k])
    analytic, numeric = float(trial.analytic[k]), float(results.numeric[k])
    if autograd is not None:
        own = float(autograd.values[coordinate])
        if not abs(own - analytic) <= SAME_MISTAKE * abs(analytic - numeric):
            return None
        analytic = own
    entry = theta[position]
    value = WrongCoordinate(entry, coordinate, analytic, numeric, error_bar, 1.0).of(entry.parameter)
    return WrongCoordinate(entry, coordinate, analytic, numeric, error_bar, max(1.0, abs(value)))


def wrong_elsewhere(
    theta: Theta, trials: Mapping[int, ParameterTrial], gradients: Mapping[int, AnalyticGradient], tolerance: float
) -> list[WrongCoordinate]:
    """Where gradients that are not on trial are wrong: the worst of the decided entries of each such parameter."""
    found = []
    for position, trial in trials.items():
        results, values = trial.results, trial.at(gradients[position].values)
        decided = np.isin(results.outcome, (Outcome.MATCH, Outcome.MISMATCH)) & np.isfinite(results.numeric)
        with np.errstate(all="ignore"):
            off = np.abs(values - results.numeric)
            allowed = tolerance * (np.abs(values) + np.abs(results.numeric)) + results.error_bar
        wrong = np.flatnonzero(decided & ~(off <= allowed))
        if len(wrong):
            k = int(wrong[np.argmax(np.nan_to_num(off[wrong], nan=np.inf))])
            numbers = float(values[k]), float(results.numeric[k]), float(results.error_bar[k])
            found.append(WrongCoordinate(theta[position], int(trial.coordinates[k]), *numbers, 1.0))
    return found
