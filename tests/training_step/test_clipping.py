"""Right gradients are clipped as the loop says it clips: each entry, then the norm of all."""

from __future__ import annotations

import math

import numpy as np
import pytest

from torch_gradcheck.training_step.clipping import CLIP_EPS, Clipping
from torch_gradcheck.training_step.step import TrainingStep

RIGHT = {0: np.array([3.0, -0.5]), 1: np.array([4.0])}


def clipped(step: TrainingStep, whole: bool = True) -> tuple[dict[int, list[float]], float]:
    values, fractions = Clipping(step, whole).of_right(RIGHT, RIGHT)
    (fraction,) = set(fractions.values())
    return {position: each.tolist() for position, each in values.items()}, fraction


def test_without_limits_they_stay() -> None:
    assert clipped(TrainingStep()) == ({0: [3.0, -0.5], 1: [4.0]}, 1.0)


def test_entries_are_limited_first_and_then_the_norm() -> None:
    values, fraction = clipped(TrainingStep(clip_value=2.0, clip_norm=1.0))
    norm = math.sqrt(2.0**2 + 0.5**2 + 2.0**2)
    assert fraction == pytest.approx(1 / (norm + CLIP_EPS), rel=1e-12)
    assert values[0] == pytest.approx([2 * fraction, -0.5 * fraction])


def test_a_norm_within_the_limit_stays() -> None:
    assert clipped(TrainingStep(clip_norm=100.0))[1] == 1.0


def test_where_the_norm_of_all_is_not_known_the_gradients_tell_the_fraction() -> None:
    given = {position: 0.25 * values for position, values in RIGHT.items()}
    fractions = Clipping(TrainingStep(clip_norm=2.0), whole=False).fractions(RIGHT, given)
    assert fractions == pytest.approx({0: 0.25, 1: 0.25})


def test_the_norm_of_some_is_no_larger_than_that_of_all() -> None:
    """So gradients that were not clipped are not taken for clipped ones where only some are known."""
    fractions = Clipping(TrainingStep(clip_norm=1.0), whole=False).fractions(RIGHT, RIGHT)
    assert fractions[0] == pytest.approx(1 / (math.sqrt(3.0**2 + 0.5**2 + 4.0**2) + CLIP_EPS))


@pytest.mark.parametrize(
    ("held", "fraction"), [(2.0, 0.25), (1.9, 1.0), (math.nan, 0.25)], ids=["at the limit", "below it", "not known"]
)
def test_what_is_held_by_less_than_the_limit_was_not_clipped(held: float, fraction: float) -> None:
    """So a scale that was taken out after clipping is not taken for a fraction."""
    given = {position: 0.25 * values for position, values in RIGHT.items()}
    clipping = Clipping(TrainingStep(clip_norm=2.0), whole=False, held=held)
    assert clipping.fractions(RIGHT, given)[0] == pytest.approx(fraction)


def test_nothing_at_all_is_no_clipped_gradient() -> None:
    given = {position: 0.0 * values for position, values in RIGHT.items()}
    assert Clipping(TrainingStep(clip_norm=2.0), whole=False).fractions(RIGHT, given) == {0: 1.0, 1: 1.0}


def test_the_norms_of_several_optimizers_are_limited_one_by_one() -> None:
    clipping = Clipping(TrainingStep(clip_norm=2.0), whole=True, groups=[frozenset({0}), frozenset({1})])
    fractions = clipping.fractions(RIGHT, RIGHT)
    assert fractions == pytest.approx({0: 2 / math.sqrt(3.0**2 + 0.5**2), 1: 0.5}, rel=1e-5)


def test_what_is_not_finite_counts_for_nothing() -> None:
    values, fractions = Clipping(TrainingStep(), whole=True).of_right({0: np.array([np.nan, 1.0])}, {})
    assert (values[0].tolist(), fractions) == ([0.0, 1.0], {0: 1.0})


def test_inputs_are_not_clipped() -> None:
    clipping = Clipping(TrainingStep(clip_value=2.0, clip_norm=1.0), whole=True, inputs=[1])
    values, fractions = clipping.of_right(RIGHT, RIGHT)
    assert fractions[0] == pytest.approx(1 / (math.sqrt(2.0**2 + 0.5**2) + CLIP_EPS), rel=1e-12)
    assert values[1].tolist() == [4.0]
    assert fractions[1] == 1.0
