from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_gradcheck.borrowing.loan import lend
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import autograd_gradients
from torch_gradcheck.gradients.by_hand import check_names, given_gradients
from torch_gradcheck.objective.preflight import preflighted
from torch_gradcheck.objective.theta import theta_of

X = torch.tensor([[1.0, 2.0, 3.0]])


def by_autograd(model: nn.Module, closure: Callable[[], Any], **patterns: Any) -> dict[str, AnalyticGradient]:
    theta = theta_of(model, **patterns)
    with lend(model, [closure], "keep", torch.float64, seed=0) as borrowed:
        objective = preflighted(model, closure, borrowed, torch.float64)
        gradients = autograd_gradients(objective, theta)
        assert all(parameter.grad is None for parameter in model.parameters())
    return {theta[position].name: gradient for position, gradient in gradients.items()}


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
        self.unused = nn.Parameter(torch.ones(2, 2))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def test_values_are_flat_float64_and_unrounded() -> None:
    model = Parts()
    gradients = by_autograd(model, lambda: torch.sum(model.used.half() ** 2 / 3))
    assert gradients["used"].values.dtype == np.float64
    np.testing.assert_allclose(gradients["used"].values, 2 * np.array([0.5, -1, 2]) / 3, rtol=1e-15)
    assert gradients["used"].reached
    assert gradients["used"].epsilon == 2.0**-52


def test_what_the_loss_does_not_reach_is_zeros() -> None:
    model = Parts()
    gradients = by_autograd(model, lambda: torch.sum(model.used))
    assert list(gradients) == ["used", "unused"], "a frozen one has no gradient"
    assert not gradients["unused"].reached
    assert gradients["unused"].values.tolist() == [0.0] * 4


def test_a_loss_without_a_graph_reaches_nothing() -> None:
    model = Parts()
    gradients = by_autograd(model, lambda: model.used.detach().sum())
    assert not any(gradient.reached for gradient in gradients.values())


def test_the_order_of_coordinates_is_that_of_the_index() -> None:
    model = nn.Linear(3, 2, bias=False)
    model.weight = nn.Parameter(torch.randn(3, 2).T)
    gradients = by_autograd(model, lambda: torch.sum(model(X) * torch.tensor([1.0, 10.0])))
    assert gradients["weight"].values.tolist() == [1, 2, 3, 10, 20, 30]


def test_complex_entries_are_pairs() -> None:
    model = nn.Module()
    model.z = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
    gradients = by_autograd(model, lambda: torch.sum(model.z.abs() ** 2))
    np.testing.assert_allclose(gradients["z"].values, [2, 4, 6, -2])


def test_sparse_gradients_are_spread_out() -> None:
    model = nn.Embedding(3, 2, sparse=True)
    gradients = by_autograd(model, lambda: model(torch.tensor([2, 0, 2])).sum())
    assert gradients["weight"].values.tolist() == [1, 1, 0, 0, 2, 2]


def test_gradients_that_are_lazily_zero_or_negated() -> None:
    model = Parts()
    real = by_autograd(model, lambda: model.used.sgn().sum())["used"]
    assert real.reached
    assert real.values.tolist() == [0.0, 0.0, 0.0]
    negated = by_autograd(model, lambda: torch.sum((1j * model.used).conj().imag))["used"]
    assert negated.values.tolist() == [-1.0, -1.0, -1.0]


def test_tied_parameters_have_the_sum() -> None:
    layer = nn.Linear(1, 1, bias=False)
    model = nn.Sequential(layer, layer)
    nn.init.constant_(layer.weight, 3)
    gradients = by_autograd(model, lambda: model(torch.ones(1, 1)).sum())
    assert gradients["0.weight"].values.tolist() == [6.0]


def test_a_closure_that_runs_backward_is_judged_by_grad() -> None:
    model = Parts()

    def closure() -> Tensor:
        model.zero_grad()
        loss = (model.used**2).sum()
        (2 * loss).backward()
        return loss

    gradients = by_autograd(model, closure)
    assert gradients["used"].values.tolist() == [2.0, -4.0, 8.0]
    assert not gradients["unused"].reached


def test_a_reentrant_checkpoint() -> None:
    model = nn.Linear(3, 1)
    inputs = X.clone().requires_grad_()
    closure = lambda: checkpoint(model, inputs, use_reentrant=True).sum()  # noqa: E731
    assert by_autograd(model, closure)["weight"].values.tolist() == [1.0, 2.0, 3.0]


def test_tensor_hooks_take_part_and_accumulation_hooks_do_not() -> None:
    model, fired = Parts(), []
    model.used.register_hook(lambda g: 2 * g)
    model.used.register_post_accumulate_grad_hook(fired.append)
    assert by_autograd(model, lambda: torch.sum(model.used))["used"].values.tolist() == [2.0, 2.0, 2.0]
    assert fired == []


# Gradients derived by hand -----------------------------------------------------------------------------------------


def given(gradients: dict[str, Any], model: nn.Module | None = None) -> dict[int, AnalyticGradient]:
    theta = theta_of(model or nn.Linear(3, 2))
    check_names(gradients, [(entry.name, *entry.aliases) for entry in theta])
    return given_gradients(gradients, theta)


@pytest.mark.parametrize(
    ("value", "eps"),
    [
        (torch.arange(6.0).reshape(2, 3), 2.0**-23),
        (torch.arange(6.0, dtype=torch.float64).reshape(2, 3), 2.0**-52),
        (torch.arange(6.0, dtype=torch.bfloat16).reshape(2, 3), 2.0**-7),
        (np.arange(6.0).reshape(2, 3), 2.0**-52),
        (np.arange(6, dtype=np.float16).reshape(2, 3), 2.0**-10),
        ([[0, 1, 2], [3, 4, 5]], 2.0**-52),
        (torch.arange(6).reshape(2, 3), 2.0**-52),
        (torch.arange(6.0, requires_grad=True).reshape(2, 3), 2.0**-23),
        (np.arange(6.0).reshape(3, 2, order="F").T[:, ::1] * 0 + np.arange(6.0).reshape(2, 3), 2.0**-52),
    ],
    ids=["float32", "float64", "bfloat16", "numpy", "float16", "lists", "integers", "with a graph", "strided"],
)
def test_arrays_of_any_kind(value: Any, eps: float) -> None:
    weight, _bias = given({"weight": value, "bias": torch.zeros(2)}).values()
    assert weight.values.tolist() == [0, 1, 2, 3, 4, 5]
    assert weight.epsilon == eps
    assert weight.reached


def test_none_is_a_gradient_that_is_missing() -> None:
    _, bias = given({"weight": torch.zeros(2, 3), "bias": None}).values()
    assert not bias.reached
    assert bias.values.tolist() == [0.0, 0.0]


def test_a_tied_parameter_goes_by_any_of_its_names() -> None:
    layer = nn.Linear(1, 1, bias=False)
    model = nn.Sequential(layer, layer)
    for name in ("0.weight", "1.weight"):
        assert given({name: [[4.0]]}, model)[0].values.tolist() == [4.0]


ZERO = torch.zeros(2)
REFUSED = {
    "missing": ({"weight": torch.zeros(2, 3)}, r"nothing for parameter 'bias' of shape \(2,\); add it"),
    "unknown": ({"weights": ZERO}, "gradients has 'weights', which is no checked parameter; close names: weight"),
    "shape": ({"weight": ZERO, "bias": ZERO}, r"gradients\['weight'\] has shape \(2,\), the parameter has \(2, 3\)"),
    "complex": ({"weight": torch.zeros(2, 3) + 0j, "bias": ZERO}, r"gradients\['weight'\] is complex"),
    "text": (
        {"weight": "zero", "bias": ZERO},
        r"gradients\['weight'\] must be a tensor or an array of numbers, got str",
    ),
    "ragged": ({"weight": [[1], [2, 3]], "bias": ZERO}, r"gradients\['weight'\] must be a tensor or an array"),
}


@pytest.mark.parametrize(("gradients", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(gradients: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        given(gradients)


def test_a_tied_gradient_given_twice() -> None:
    layer = nn.Linear(1, 1, bias=False)
    with pytest.raises(InvalidRequestError, match=r"one tied parameter twice, as '0\.weight' and '1\.weight'"):
        given({"0.weight": [[1.0]], "1.weight": [[1.0]]}, nn.Sequential(layer, layer))
