"""A J that raises beside θ because it is not defined there: no verdict is spoilt by it, and other exceptions pass."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributions import Normal
from torch.nn.functional import binary_cross_entropy

from torch_gradcheck import Status, check_function, check_module


def entropy(p: Tensor) -> Tensor:
    if (p < 0).any() or (p > 1).any():
        raise ValueError("p must be a probability")
    return 1e-6 * p * (1 - p)


class Noise(nn.Module):
    """The likelihood of a batch under a scale near 0; it has a parameter that does not count, too."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor([2e-3, 0.5]))
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return -1e-9 * Normal(self.loc, self.scale).log_prob(x).mean() + 0 * self.idle.sum()


def test_steps_that_leave_the_domain_are_not_taken() -> None:
    report = check_module(Noise(), lambda loss: loss, torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    assert [row.status for row in report] == [Status.MATCH, Status.MATCH, Status.FLAT]
    assert report["scale"].eps < 2e-3


@pytest.mark.parametrize(
    ("p", "status"),
    [([0.2, 0.5], Status.MATCH), ([1e-9, 0.5], Status.MATCH), ([1.0, 0.5], Status.UNDECIDED)],
    ids=["inside", "close to the edge", "on the edge"],
)
def test_what_is_told_at_the_edge(p: list[float], status: Status) -> None:
    report = check_function(entropy, (torch.tensor(p, dtype=torch.float64),))
    assert report["p"].status is status
    told = [note for note in report.notes if "J raises ValueError (p must be a probability)" in note]
    assert bool(told) == (p[0] in (1e-9, 1.0))


@pytest.mark.parametrize("times", [1, 10**6], ids=["once", "from then on"])
def test_an_exception_that_is_not_due_to_theta_comes_through(times: int) -> None:
    """At the first evaluations, at perturbed ones, in the backward's."""
    for first in itertools.count(1):
        raised, calls = ValueError("the file is gone"), itertools.count(1)

        def function(x: Tensor, raised: ValueError = raised, calls: itertools.count[int] = calls) -> Tensor:
            if first <= next(calls) < first + times:  # noqa: B023
                raise raised
            return x * x

        try:
            check_function(function, (torch.ones(2, dtype=torch.float64),))
        except ValueError as error:
            assert error is raised  # noqa: PT017
        else:
            break
    assert first > 20


class Scaled(Function):
    """The identity, its gradient times 1.01."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 1.01 * g


def test_an_operation_of_a_record_that_raises_is_asked_of_j() -> None:
    """Fifty entries are worth a record, and directions through a wrong gradient reach far."""
    p = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    report = check_function(lambda p: binary_cross_entropy(Scaled.apply(p), torch.ones_like(p)), (p,))
    assert report["p"].mismatched == 50
