from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.borrowing.loan import lend
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.methods.directional.directions import Directions
from torch_gradcheck.methods.projected.bisect import MOST_LOCATED, Bisection
from torch_gradcheck.methods.projected.verify import DIRECTIONS, Verifier
from torch_gradcheck.objective.preflight import preflighted
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.reporting.progress import progress_bar

EPS = float(np.finfo(np.float64).eps)
TOLERANCE = 1e-5


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))


@contextmanager
def lent(network: nn.Module, factor: float = 1.0) -> Iterator[tuple[Directions, Noise, dict[int, Floats]]]:
    """Directions through the model, the noise of J, and the right gradient."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).double()

    def J() -> Tensor:
        return factor * network(x).square().mean()

    with lend(network, [], "eval", torch.float64, 0) as borrowed, progress_bar(False) as bar:
        objective = preflighted(network, J, borrowed, torch.float64)
        found = torch.autograd.grad(J(), list(network.parameters()))
        gradients = {position: gradient.numpy().ravel() for position, gradient in enumerate(found)}
        noise = Noise(objective.loss, EPS * abs(objective.loss), EPS)
        yield Directions(objective, theta_of(network), 0, bar), noise, gradients


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e6])
def test_the_right_gradient_is_certified_whatever_the_size_of_the_loss(factor: float) -> None:
    with lent(model(), factor) as (directions, noise, gradients):
        certificates, refused = Verifier(directions, noise, TOLERANCE, None).certify(gradients, range(6))
    assert refused == []
    for position, certificate in certificates.items():
        assert certificate.proof.directions == DIRECTIONS
        assert certificate.proof.detectable < 1e-4 * np.linalg.norm(gradients[position])


SPOILED: dict[str, Callable[[Floats], Floats]] = {
    "scaled": lambda g: g * 1.0005,
    "flipped": lambda g: -g,
    "missing": np.zeros_like,
    "one entry": lambda g: np.where(np.arange(len(g)) == np.argmax(np.abs(g)), 0.0, g),
}


@pytest.mark.slow_but_for(4)
@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("wrong", [[2], [0, 3], [1, 2, 4]], ids=str)
def test_exactly_the_tensors_that_are_wrong_are_refused(wrong: list[int], spoil: Callable[[Floats], Floats]) -> None:
    with lent(model()) as (directions, noise, gradients):
        spoiled = {p: spoil(g) if p in wrong else g for p, g in gradients.items()}
        certificates, refused = Verifier(directions, noise, TOLERANCE, None).certify(spoiled, range(6))
    assert refused == wrong
    assert sorted([*certificates, *refused]) == list(range(6))


def test_a_tensor_with_a_far_smaller_gradient_is_judged_among_its_likes() -> None:
    network = model()
    with torch.no_grad():
        network[2].weight.mul_(1e-7)
    with lent(network) as (directions, noise, gradients):
        certificates, refused = Verifier(directions, noise, TOLERANCE, None).certify(gradients, range(6))
    assert refused == []
    small = certificates[0].proof.resolution / np.linalg.norm(gradients[0])
    assert np.linalg.norm(gradients[0]) < 1e-5 * np.linalg.norm(gradients[5])
    assert small <= TOLERANCE


@pytest.mark.parametrize("places", [[7], [0, 399], [5, 6, 250]], ids=str)
def test_bisection_finds_the_wrong_entries_and_stops(places: list[int]) -> None:
    with lent(model()) as (directions, noise, gradients):
        spoiled = gradients[2].copy()
        spoiled[places] += np.linalg.norm(spoiled)
        verifier = Verifier(directions, noise, TOLERANCE, None)
        bisection = Bisection(directions, 2, spoiled, *verifier.alone({2: spoiled}, 2), noise, TOLERANCE)
        assert bisection.contradicted()
        assert len(places) <= MOST_LOCATED
        assert sorted(bisection.wrong_coordinates()) == places


def test_a_right_gradient_is_not_contradicted() -> None:
    with lent(model()) as (directions, noise, gradients):
        alone = Verifier(directions, noise, TOLERANCE, None).alone(gradients, 2)
        bisection = Bisection(directions, 2, gradients[2], *alone, noise, TOLERANCE)
        assert not bisection.contradicted()
        assert list(bisection.wrong_coordinates()) == []
