"""`vmap`: it gives what a loop gives, or does not apply."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.contract.made_functions import drawn, function, tried

X, W = drawn(3, 4), drawn(3, 4, seed=1)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, g: Any) -> Any:
    x, w = ctx.saved_tensors
    return (g * w).sum_to_size(x.shape), (g * x).sum_to_size(w.shape)


def times(**members: Any) -> Any:
    """x · w with these members."""
    return function("Times", lambda x, w: x * w, _backward, setup_context=_setup, **members)


def _first(tensor: Any, dim: Any) -> Any:
    return tensor if dim is None else tensor.movedim(dim, 0)


def _right(info: Any, dims: Any, x: Any, w: Any) -> Any:
    return RULE(_first(x, dims[0]), _first(w, dims[1])), 0


def _dimension_0_only(info: Any, dims: Any, x: Any, w: Any) -> Any:
    return RULE(x, w), 0


def _all_batched(info: Any, dims: Any, x: Any, w: Any) -> Any:
    return RULE(x.movedim(dims[0], 0), w.movedim(dims[1], 0)), 0


def _one_per_mille(info: Any, dims: Any, x: Any, w: Any) -> Any:
    return RULE(_first(x, dims[0]), _first(w, dims[1])) * 1.001, 0


def _detached(info: Any, dims: Any, x: Any, w: Any) -> Any:
    return RULE(_first(x, dims[0]).detach(), _first(w, dims[1])), 0


RULE = times(vmap=_right)

RIGHT = {
    "generated": (times(generate_vmap_rule=True), (X, W)),
    "written": (RULE, (X, W)),
    "of torch": (lambda x, w: (x.softmax(-1) @ w.T, x.sum()), (X, W)),
    "of a layer": (nn.Linear(4, 2), (X,)),
    "of numbers": (lambda a: a.exp(), (torch.tensor(0.3),)),
    "complex": (lambda z: z * z.conj(), (torch.complex(X, W),)),
    "integers besides": (lambda x, n: (x**n, x.argmax()), (X, 3)),
    "writes to its gradient": (function("Twice", lambda ctx, x: x * 2, lambda ctx, g: g.mul_(2)), (X,)),
}

WRONG = {
    "scaled": (times(vmap=_one_per_mille), "vmap with the arguments batched in dimension 0: output is "),
    "gradient lost": (
        times(vmap=_detached),
        "vmap with the arguments batched in dimension 0: the gradient of x is None, should be ",
    ),
    "dimension 0 only": (
        times(vmap=_dimension_0_only),
        "with x not batched, and the others in their last dimension, it raises RuntimeError",
    ),
    "all batched": (
        times(vmap=_all_batched),
        "with x not batched, and the others in their last dimension, it raises TypeError",
    ),
}


@pytest.mark.parametrize(("run", "inputs"), RIGHT.values(), ids=RIGHT)
def test_what_is_like_a_loop_passes(run: Any, inputs: Any) -> None:
    entry = tried("vmap", run, *inputs)
    assert entry.status != "failed", entry.message
    assert entry.message in ("", "vmap has no rule for Twice")


@pytest.mark.parametrize(("run", "words"), WRONG.values(), ids=WRONG)
def test_what_is_not_fails(run: Any, words: str) -> None:
    entry = tried("vmap", run, X, W)
    assert entry.status == "failed", entry.message
    assert words in entry.message


def test_another_dimension_is_tried() -> None:
    def rule(info: Any, dims: Any, x: Any) -> Any:
        return torch.softmax(x, -1), dims[0]

    def backward(ctx: Any, g: Any) -> Any:
        (y,) = ctx.saved_tensors
        return y * (g - (g * y).sum(-1, keepdim=True))

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)

    run = function("Softmax", lambda x: torch.softmax(x, -1), backward, setup_context=setup, vmap=rule)
    entry = tried("vmap", run, X)
    assert entry.message.startswith("vmap with the argument batched in its last dimension: output is ")


def test_a_backward_that_mixes_what_is_batched_fails() -> None:
    def backward(ctx: Any, g: Any) -> Any:
        return g * (2 if not torch._C._functorch.is_batchedtensor(g) else 3)

    entry = tried("vmap", function("Twice", lambda ctx, x: x * 2, backward), X)
    assert entry.message.startswith("vmap of the backward (Twice.backward at ")


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        pytest.param(
            function("Twice", lambda ctx, x: x * 2, lambda ctx, g: g * 2), "no rule for Twice", id="no setup_context"
        ),
        pytest.param(nn.Dropout(), "draws random numbers", id="random"),
        pytest.param(lambda x: x if x.sum() > 0 else -x, "vmap raises RuntimeError", id="condition"),
        pytest.param(nn.BatchNorm1d(4), "vmap raises RuntimeError", id="buffers written to"),
    ],
)
def test_where_vmap_does_not_work_it_does_not_apply(run: Any, reason: str) -> None:
    entry = tried("vmap", run, X)
    assert entry.status == "not_applicable", entry.message
    assert reason in entry.message


def test_what_torch_would_run_in_a_loop_does_not_apply(capfd: pytest.CaptureFixture[str]) -> None:
    @torch.library.custom_op("contract_test::thrice", mutates_args=())
    def thrice(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    thrice.register_autograd(lambda ctx, g: g * 3)
    entry = tried("vmap", thrice, X)
    assert (entry.status, entry.message) == (
        "not_applicable",
        "vmap has no rule for contract_test::thrice: it would run a loop",
    )
    assert capfd.readouterr().err == ""


def test_an_operator_with_a_rule_is_tried() -> None:
    @torch.library.custom_op("contract_test::fourfold", mutates_args=())
    def fourfold(x: torch.Tensor) -> torch.Tensor:
        return x * 4

    fourfold.register_autograd(lambda ctx, g: g * 4)
    fourfold.register_vmap(lambda info, dims, x: (fourfold(x), dims[0]))
    assert tried("vmap", fourfold, X).status == "passed"
