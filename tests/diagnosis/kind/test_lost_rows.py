"""Rows that a sum leaves out or counts twice are told, and only where nothing else explains what it lacks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_gradcheck import check_module
from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.lost_rows import rows_lost_by

TERMS = np.random.default_rng(3).normal(size=(12, 5))


@given(seed=st.integers(0, 10_000), rows=st.integers(2, 40), first=st.integers(0, 38), length=st.integers(1, 38))
def test_a_run_of_rows_is_found(seed: int, rows: int, first: int, length: int) -> None:
    first, length = first % rows, min(length, rows - 1)
    terms = np.random.default_rng(seed).normal(size=(rows, 6))
    lost = np.arange(first, min(first + length, rows))
    found = rows_lost_by(terms.sum(0) - terms[lost].sum(0), terms)
    assert found is not None
    assert (found.indices.tolist(), found.twice) == (lost.tolist(), False)


@given(seed=st.integers(0, 10_000), rows=st.integers(2, 8), data=st.data())
def test_any_set_of_rows_is_found_where_there_are_entries_enough(seed: int, rows: int, data: st.DataObject) -> None:
    terms = np.random.default_rng(seed).normal(size=(rows, 24))
    lost = sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1, max_size=rows - 1)))
    twice = data.draw(st.booleans())
    whole, part = terms.sum(0), terms[lost].sum(0)
    found = rows_lost_by(whole + part if twice else whole - part, terms)
    assert found is not None
    assert (found.indices.tolist(), found.twice) == (lost, twice)


@pytest.mark.parametrize(
    "taken",
    [
        pytest.param(TERMS.sum(0), id="the right sum"),
        pytest.param(0 * TERMS[0], id="nothing"),
        pytest.param(2 * TERMS.sum(0), id="every row twice"),
        pytest.param(TERMS.mean(0), id="a mean"),
        pytest.param(TERMS.sum(0) - 0.5 * TERMS[3], id="half a row"),
        pytest.param(TERMS.sum(0) - TERMS[3] * (1 + 1e-6), id="next to a row"),
        pytest.param(TERMS.sum(0) - TERMS[3] + TERMS[5], id="one row in the place of another"),
        pytest.param(TERMS.sum(0) + 1e-3 * np.eye(5)[0], id="one entry off"),
    ],
)
def test_nothing_else_is_taken_for_lost_rows(taken: Floats) -> None:
    assert rows_lost_by(taken, TERMS) is None


Backward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def layer(backward: Backward) -> nn.Module:
    """A linear layer from 6 to 5 whose Function has this backward: (grad, x, w) → gradients of x, w and b."""

    class Affine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, w: Tensor, b: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x, w)
            return x @ w.T + b

        @staticmethod
        def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def,override]
            return backward(grad, *ctx.saved_tensors)

    model = nn.Linear(6, 5)
    model.forward = lambda x: Affine.apply(x, model.weight, model.bias)  # type: ignore[method-assign,no-untyped-call]
    return model


def outer(g: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("...o,...i->oi", g, x)


def total(g: Tensor) -> Tensor:
    return g.flatten(0, -2).sum(0)


SUM = "dθ is the sum of the upstream gradient, but "
INPUT = "the input x of autograd.Function Affine in module 2"
PRODUCTS = f"dθ is the sum of the products of the upstream gradient and {INPUT}, but "


@pytest.mark.parametrize(
    ("backward", "shape", "told"),
    [
        pytest.param(
            lambda g, x, w: (g @ w, outer(g, x), g[:8].sum(0)),
            (12, 4),
            {"2.bias": SUM + "indices 8-11 of 12 along axis 0 are left out; the whole sum is right"},
            id="tail of a bias",
        ),
        pytest.param(
            lambda g, x, w: (g @ w, outer(g[1:], x[1:]), total(g)),
            (12, 4),
            {"2.weight": PRODUCTS + "index 0 of 12 along axis 0 is left out; the whole sum is right"},
            id="first row of a weight",
        ),
        pytest.param(
            lambda g, x, w: (g @ w, outer(g, x) + outer(g[3], x[3]), total(g) + g[3]),
            (12, 4),
            {
                "2.weight": PRODUCTS + "index 3 of 12 along axis 0 is counted twice; the plain sum is right",
                "2.bias": SUM + "index 3 of 12 along axis 0 is counted twice; the plain sum is right",
            },
            id="a row twice",
        ),
        pytest.param(
            lambda g, x, w: (g @ w, outer(g[:, :-1], x[:, :-1]), total(g)),
            (4, 7, 4),
            {"2.weight": PRODUCTS + "index 6 of 7 along axis 1 is left out; the whole sum is right"},
            id="last step of a sequence",
        ),
    ],
)
def test_what_a_backward_leaves_out_of_its_sums_is_told(
    backward: Backward, shape: tuple[int, ...], told: dict[str, str]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), layer(backward), nn.Tanh())
    report = check_module(model, lambda y: (y + 0.3).square().mean(), torch.randn(shape))
    found = {row.name: (str(row.diagnosis.kind), row.diagnosis.message) for row in report.mismatches if row.diagnosis}
    assert found == {name: ("wrong_sum", message) for name, message in told.items()}
    assert report.culprit == "2"


def test_rows_that_no_gradient_arrives_at_are_not_told_of_a_right_sum() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), layer(lambda g, x, w: (g @ w, 1.5 * outer(g, x), g[:8].sum(0))))
    report = check_module(model, lambda y: y[:8].square().sum(), torch.randn(12, 4))
    assert [(row.name, str(row.diagnosis.kind)) for row in report.mismatches if row.diagnosis] == [
        ("1.weight", "scaled")
    ]
