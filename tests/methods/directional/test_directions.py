from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from torch_gradcheck.borrowing.loan import lend
from torch_gradcheck.methods.directional.directions import Directions, slope
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.preflight import preflighted
from torch_gradcheck.objective.theta import Theta, theta_of
from torch_gradcheck.reporting.progress import progress_bar


class Quadratic(nn.Module):
    """½·Σ|θ|² over three tensors, one of them complex."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.b = nn.Parameter(torch.randn(2, generator=generator, dtype=torch.complex64))
        self.c = nn.Parameter(torch.tensor(0.5))

    def J(self) -> torch.Tensor:
        return sum(p.abs().square().sum() for p in self.parameters()) / 2


def in_loan(model: Quadratic, test: object) -> None:
    theta = theta_of(model)
    with lend(model, [], "eval", torch.float64, 0) as borrowed, progress_bar(False) as bar:
        objective = preflighted(model, model.J, borrowed, torch.float64)
        test(Directions(objective, theta, 7, bar), objective, theta)


def gradients(theta: Theta) -> dict[int, np.ndarray]:
    """That of the quadratic form is θ itself."""
    values = [torch.view_as_real(e.parameter.data) if e.is_complex else e.parameter.data for e in theta]
    return {position: value.numpy().ravel() for position, value in enumerate(values)}


def test_components_are_signed_and_away_from_zero() -> None:
    def test(directions: Directions, objective: Objective, theta: Theta) -> None:
        found = np.concatenate([directions.random(k, {0: 1.0})[0].components.numpy() for k in range(200)])
        assert np.abs(found).min() >= 0.5
        assert np.abs(found).max() <= 1.5
        assert abs(np.mean(found > 0) - 0.5) < 0.05
        assert abs(np.mean(np.abs(found)) - 1) < 0.03

    in_loan(Quadratic(), test)


def test_a_tensor_moves_alike_whoever_else_does() -> None:
    def test(directions: Directions, objective: Objective, theta: Theta) -> None:
        alone = directions.random(3, {1: 2.0})[1].components
        assert torch.equal(alone, directions.random(3, {0: 1.0, 1: 5.0, 2: 1.0})[1].components)
        assert not torch.equal(alone, directions.random(4, {1: 2.0})[1].components)

    in_loan(Quadratic(), test)


def test_the_slope_along_directions_is_that_of_the_gradient_and_theta_stays() -> None:
    def test(directions: Directions, objective: Objective, theta: Theta) -> None:
        before = [entry.parameter.detach().clone() for entry in theta]
        several = [directions.random(0, {0: 1.0, 1: 2.0, 2: 0.1}), directions.random(1, {2: 1.0})]
        which, steps = np.array([0, 1, 0, 1]), np.array([1e-3, 1e-3, -1e-3, -1e-3])
        samples = directions.sampler(several)(which, steps)
        slopes = (samples.values[:2] - samples.values[2:]) / 2e-3
        assert slopes == pytest.approx([slope(direction, gradients(theta)) for direction in several], rel=1e-9)
        assert all(torch.equal(entry.parameter, saved) for entry, saved in zip(theta, before, strict=True))
        assert objective.value() == objective.loss

    in_loan(Quadratic(), test)


def test_moves_add_up_inside_a_block_and_theta_comes_back() -> None:
    def test(directions: Directions, objective: Objective, theta: Theta) -> None:
        before = [entry.parameter.detach().clone() for entry in theta]
        one, other = directions.random(0, {0: 1.0, 1: 2.0}), directions.random(1, {0: 1.0})
        with directions.at((one, 0.5), (other, -2.0)):
            moved = theta[0].parameter.detach() - before[0]
            expected = 0.5 * one[0].components.double() - 2 * other[0].components.double()
            torch.testing.assert_close(moved.flatten(), expected)
            assert not torch.equal(theta[1].parameter.detach(), before[1])
            assert torch.equal(theta[2].parameter.detach(), before[2])
        assert all(torch.equal(entry.parameter, saved) for entry, saved in zip(theta, before, strict=True))
        with pytest.raises(KeyboardInterrupt), directions.at((one, 1.0)):
            raise KeyboardInterrupt
        assert all(torch.equal(entry.parameter, saved) for entry, saved in zip(theta, before, strict=True))

    in_loan(Quadratic(), test)


def test_sizes() -> None:
    def test(directions: Directions, objective: Objective, theta: Theta) -> None:
        assert directions.sizes[2] == pytest.approx(0.5)
        assert directions.sizes[0] == pytest.approx(float(theta[0].parameter.detach().square().mean().sqrt()))

    in_loan(Quadratic(), test)
