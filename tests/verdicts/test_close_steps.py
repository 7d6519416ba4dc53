"""Entries beside corners of J: steps just below the nearest corner decide them, and find what is wrong there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tests.differences.families import Family
from torch_gradcheck import Report, check_module
from torch_gradcheck.arrays import Floats
from torch_gradcheck.differences.richardson import Stencil
from torch_gradcheck.verdicts.entry_check import EntryResults, Outcome
from torch_gradcheck.verdicts.judge import judge_gradient
from torch_gradcheck.verdicts.ratio import relative_error

ENTRIES, UNITS = 16, 5


def before_relus(size: float, nearest: float, seed: int) -> tuple[Family, Floats]:
    """What weights before ReLUs see: J = 1 + Σ size_i · (sin + corners at distances from `nearest` to 1); its gradient.

    The size of an entry is `size` or down to a thousandth of it.
    """
    rng = np.random.default_rng(seed)
    functions: list[Callable[[Floats], Floats]] = []
    gradient = []
    for factor in size * 10.0 ** rng.uniform(-3, 0, ENTRIES):
        places = nearest ** rng.uniform(0, 1, UNITS) * rng.choice([-1, 1], UNITS)
        weights = rng.uniform(-2, 2, UNITS)

        def f(v: Floats, factor: float = factor, places: Floats = places, weights: Floats = weights) -> Floats:
            return factor * (np.sin(v + 0.5) + (weights * np.maximum(v[:, None] - places, 0)).sum(axis=1))

        functions.append(f)
        gradient.append(factor * (np.cos(0.5) + weights[places < 0].sum()))
    return Family([np.ones_like, *functions], [0.0] * (ENTRIES + 1)), np.array([0.0, *gradient])


def judged(family: Family, gradient: Floats, previous: Stencil | None = None) -> EntryResults:
    return judge_gradient(family.check(gradient), previous)


SIZES = [(1e-3, 1e-6), (1e-5, 1e-4), (1e-7, 1e-3)]
sized = pytest.mark.parametrize(("size", "nearest"), SIZES, ids=["at 1e-6", "at 1e-4", "at 1e-3"])


@sized
@pytest.mark.parametrize("seed", range(4))
def test_a_right_gradient_beside_corners_matches(size: float, nearest: float, seed: int) -> None:
    """Noise hides an error of the tolerance at steps up to a quarter of the distance to the nearest corners."""
    family, gradient = before_relus(size, nearest, seed)
    results = judged(family, gradient)
    assert set(results.outcome) == {Outcome.MATCH}
    assert relative_error(gradient, results.numeric) <= 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_a_stencil_that_suited_the_tensor_before_may_cross_corners_of_this_one(seed: int) -> None:
    family, gradient = before_relus(1e-7, 1e-3, seed)
    family.evaluations = 0
    results = judged(family, gradient, Stencil(0.125, 0))
    assert set(results.outcome) == {Outcome.MATCH}
    assert relative_error(gradient, results.numeric) <= 1e-5
    assert family.evaluations < 26 * len(gradient), "as one ladder at every entry takes"


@sized
@pytest.mark.parametrize("off", [1.01, 0.0, -1.0], ids=["a hundredth", "missing", "flipped"])
def test_a_wrong_entry_beside_corners_is_found(size: float, nearest: float, off: float) -> None:
    family, gradient = before_relus(size, nearest, seed=0)
    worst = int(np.argmax(np.abs(gradient)))
    gradient[worst] *= off
    assert np.flatnonzero(judged(family, gradient).outcome == Outcome.MISMATCH).tolist() == [worst]


def test_nothing_is_accused_among_dense_corners() -> None:
    """Many corners are closer than any step that noise allows: undecided at worst."""
    for seed in range(8):
        family, gradient = before_relus(1e-3, 1e-7, seed)
        assert Outcome.MISMATCH not in judged(family, gradient).outcome, seed


def near_corner(distance: float, spoiled: str = "") -> Report:
    """A unit in each of two layers is `distance` away from its corner at one sample."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    x, y = torch.randn(7, 4, dtype=torch.float64), 3 * torch.randn(7, 2, dtype=torch.float64)
    with torch.no_grad():
        model[0].bias[1] += distance - model[0](x)[2, 1]
        model[2].bias[3] += 3 * distance - model[:3](x)[5, 3]
    loss_fn = nn.MSELoss()
    parameters = dict(model.named_parameters())
    slopes = torch.autograd.grad(loss_fn(model(x), y), list(parameters.values()))
    gradients = dict(zip(parameters, slopes, strict=True))
    if spoiled:
        gradients[spoiled].view(-1)[gradients[spoiled].abs().argmax()] *= 1.05
    return check_module(model, loss_fn, (x, y), gradients=gradients, progress=False)


@pytest.mark.parametrize("distance", [1e-8, -1e-8, 1e-9, -1e-9], ids="{:g}".format)
def test_a_unit_close_to_its_corner_leaves_nothing_undecided(distance: float) -> None:
    report = near_corner(distance)
    assert report.proven, str(report)


@pytest.mark.parametrize("name", ["0.weight", "2.bias"])
def test_a_mistake_beside_a_unit_close_to_its_corner_is_found(name: str) -> None:
    assert [row.name for row in near_corner(1e-9, spoiled=name).mismatches] == [name]


@pytest.mark.parametrize("factor", [1e300, 1e-300], ids="times={:g}".format)
@pytest.mark.parametrize("overflow", [np.inf, np.nan], ids=["inf", "nan"])
def test_sizes_and_values_out_of_the_ordinary_raise_no_warning(factor: float, overflow: float) -> None:
    def f(v: Floats) -> Floats:
        return factor * np.where(np.abs(v) > 1e-2, overflow, 1 + 1e-9 * np.maximum(v - 1e-3, 0))

    family = Family([f, f], [0.0, 0.0])
    assert Outcome.MISMATCH not in judged(family, np.array([0.0, 1e-18 * factor])).outcome
