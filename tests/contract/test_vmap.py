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


def _dimension_of_the_first(info: Any, dims: Any, x: Any, w: Any) -> Any:
    dim = dims[1] if dims[0] is None else dims[0]
    pairs = [(x, dims[0]), (w, dims[1])]
    return RULE(*[each[None] if batched is None else each.movedim(dim, 0) for each, batched in pairs]), 0


def _dimension_0_or_nothing(info: Any, dims: Any, x: Any, w: Any) -> Any:
    if any(dim != 0 for dim in dims):
        raise NotImplementedError("another dimension")
    return RULE(x, w), 0


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


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda x: x.max(), id="maximum"),
        pytest.param(lambda x: x / x.abs().max(), id="scaled by the largest"),
        pytest.param(lambda x: (x - x.min()) / (x.max() - x.min()), id="between 0 and 1"),
        pytest.param(lambda x: x.median(), id="median"),
        pytest.param(lambda x: (x.amax(), x.argmax()), id="place of the maximum"),
    ],
)
def test_ties_are_no_mistake(run: Any) -> None:
    entry = tried("vmap", run, torch.tensor([1.0, 2.0, 2.0, 2.0, 1.0, 1.0]))
    assert (entry.status, entry.message) == ("passed", "")


def test_entries_that_are_tied_beside_as_well_are_not_tried() -> None:
    def largest_of_rounded(x: torch.Tensor) -> torch.Tensor:
        return (x + ((4 * x).round() / 4 - x).detach()).max()

    entry = tried("vmap", largest_of_rounded, torch.tensor([0.1, 0.98, 1.02, 1.01, 0.3, 1.03]))
    assert entry.status == "passed"
    assert entry.message.startswith("with the arguments batched in dimension 0: not tried, being at a kink")


def test_a_parameter_may_be_tied_as_well() -> None:
    layer = nn.Linear(4, 2)
    nn.init.ones_(layer.weight)
    assert tried("vmap", nn.Sequential(layer, MaximumOfWeight(layer)), X).status == "passed"
    assert torch.equal(layer.weight, torch.ones(2, 4))


class MaximumOfWeight(nn.Module):
    """x times the largest weight of a layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x.sum() * 0 + self.layer.weight.max())


def test_a_wrong_rule_fails_at_a_tie_as_well() -> None:
    rule = times(vmap=_one_per_mille)
    entry = tried("vmap", lambda x, w: rule(x, w) / x.max(), torch.ones(3, 4), W)
    assert entry.message.startswith("vmap with the arguments batched in dimension 0: output is ")


def test_dimensions_may_differ() -> None:
    square = (drawn(3, 3), drawn(3, 3, seed=1))
    entry = tried("vmap", times(vmap=_dimension_of_the_first), *square)
    assert entry.status == "failed"
    said = "with the arguments batched in dimensions of their own (x in 1, w in 2)"
    assert said in entry.message


def test_a_rule_that_says_what_it_has_not_is_no_mistake() -> None:
    entry = tried("vmap", times(vmap=_dimension_0_or_nothing), X, W)
    assert entry.status == "passed"
    assert "with x not batched, and the others in their last dimension: vmap raises NotImpl" in entry.message


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
