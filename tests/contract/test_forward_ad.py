"""`forward_ad`: a jvp is right, wrong, or not there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.contract.made_functions import drawn, function, tried

X, W = drawn(3, 4), drawn(3, 4, seed=1)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)
    ctx.save_for_forward(*inputs)


def _backward(ctx: Any, g: Any) -> Any:
    x, w = ctx.saved_tensors
    return g * w, g * x


def times(jvp: Any) -> Any:
    """x · w with this jvp."""
    return function("Times", lambda x, w: x * w, _backward, setup_context=_setup, jvp=jvp)


def _right(ctx: Any, dx: Any, dw: Any) -> Any:
    x, w = ctx.saved_tensors
    return dx * w + dw * x


def _negated(ctx: Any, dx: Any, dw: Any) -> Any:
    x, w = ctx.saved_tensors
    return dx * w - dw * x


def _one_per_cent(ctx: Any, dx: Any, dw: Any) -> Any:
    x, w = ctx.saved_tensors
    return 1.01 * dx * w + dw * x


def _lost(ctx: Any, dx: Any, dw: Any) -> Any:
    return dx * ctx.saved_tensors[1]


def _misshapen(ctx: Any, dx: Any, dw: Any) -> Any:
    return (dx * ctx.saved_tensors[1])[:2]


def _two_outputs(ctx: Any, dx: Any) -> Any:
    return dx * 2, dx * 4


class Layer(nn.Module):
    def __init__(self, run: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(W.clone())
        self.run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.run(x, self.weight)
        return y


RIGHT = {
    "right": (times(_right), (X, W)),
    "of a layer": (Layer(times(_right)), (X,)),
    "of torch": (lambda x, w: (x.sin() * w).sum(0), (X, W)),
    "complex": (torch.mul, (torch.complex(X, W), torch.complex(W, X))),
    "at a kink": (torch.relu, (torch.zeros(4),)),
    "batch norm": (nn.BatchNorm1d(4), (X,)),
    "written in place": (lambda x: x.cos_().sin_(), (X,)),
}

WRONG = {
    "negated": (times(_negated), (X, W), ["Times.jvp at ", "are wrong for w; for w, ⟨v, tangent⟩ is "]),
    "one per cent": (times(_one_per_cent), (X, W), ["are wrong for x;"]),
    "lost": (times(_lost), (X, W), ["are wrong for w;", "is 0, where centered differences give "]),
    "wrong shape": (times(_misshapen), (X, W), ["with tangents of all that is on trial, forward mode raises"]),
    "of a parameter": (Layer(times(_lost)), (X,), ["are wrong for weight;"]),
    "of the second output": (
        function("Two", lambda ctx, x: (x * 2, x * 3), lambda ctx, g, h: g * 2 + h * 3, jvp=_two_outputs),
        (X,),
        ["are wrong for x;"],
    ),
}


@pytest.mark.parametrize(("run", "inputs"), RIGHT.values(), ids=RIGHT)
def test_right_tangents_pass(run: Any, inputs: Any) -> None:
    entry = tried("forward_ad", run, *inputs)
    assert entry.status == "passed", entry.message


@pytest.mark.parametrize(("run", "inputs", "words"), WRONG.values(), ids=WRONG)
def test_wrong_tangents_fail(run: Any, inputs: Any, words: list[str]) -> None:
    entry = tried("forward_ad", run, *inputs)
    assert entry.status == "failed", entry.message
    for each in words:
        assert each in entry.message


def test_a_jvp_that_needs_every_tangent_fails() -> None:
    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        _setup(ctx, inputs, output)
        ctx.set_materialize_grads(False)

    run = function("Times", lambda x, w: x * w, _backward, setup_context=setup, jvp=_right)
    entry = tried("forward_ad", run, X, W)
    assert entry.message.startswith("with tangents of x alone, forward mode raises TypeError")


def test_without_a_rule_it_does_not_apply() -> None:
    entry = tried("forward_ad", function("Twice", lambda ctx, x: x * 2, lambda ctx, g: g * 2), X)
    assert (entry.status, entry.message) == ("not_applicable", "no forward-mode rule: Twice has no jvp")


def test_nor_where_torch_has_none() -> None:
    entry = tried("forward_ad", lambda x: torch.cdist(x, x.sin()), X)
    assert entry.status == "not_applicable"
    assert "forward mode raises NotImplementedError" in entry.message


@pytest.mark.parametrize("run", [lambda x: x * 2, lambda x: x.sin() / W, nn.Dropout()], ids=["2", "W", "dropout"])
def test_torch_is_not_made_to_load_its_compiler(run: Any) -> None:
    entry = tried("forward_ad", run, X)
    assert (entry.status, "(such as x * 2) would load torch's compiler" in entry.message) == ("not_applicable", True)


def test_what_backward_and_differences_do_not_agree_on_is_the_fault_of_no_rule_of_torch() -> None:
    entry = tried("forward_ad", lambda x: (x.sin(), x.detach().requires_grad_()), X)
    assert entry.status == "not_applicable"
    assert entry.message.startswith("torch's own rules give what the backward gives")


def test_held_values_stay() -> None:
    def detaching(x: Any) -> Any:
        return torch.stack([RIGHT["right"][0](x, x.sin()), x.detach()])

    assert tried("forward_ad", detaching, X).status == "failed"
    assert tried("forward_ad", detaching, X, hold_detached=True).status == "passed"


def by_numpy(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.sin(x.detach().numpy()))


@pytest.mark.parametrize("run", [lambda x: x.detach() * 2, by_numpy], ids=["detached", "numpy"])
@pytest.mark.parametrize("name", ["forward_ad", "vmap"])
def test_what_loses_the_graph_is_not_passed_by_rules_of_torch(run: Any, name: str) -> None:
    entry = tried(name, run, X)
    if name == "forward_ad":
        assert entry.status == "not_applicable"
        assert entry.message == "not tried: no output has a graph (detached, or computed past autograd)"
    elif run is not by_numpy:
        assert (entry.status, entry.message) == ("passed", "of the forward alone: the backward gives no gradient")


def _in_float32(ctx: Any, dx: Any, dw: Any) -> Any:
    return _right(ctx, dx, dw).float()


def test_a_tangent_of_another_dtype_fails() -> None:
    entry = tried("forward_ad", times(_in_float32), X, W)
    assert entry.status == "failed"
    assert entry.message.startswith(
        "with tangents of all that is on trial, the tangent of output has the dtype float32, should have float64 by "
        "Times.jvp at tests/contract/test_forward_ad.py:"
    )


@pytest.mark.parametrize("name", ["forward_ad", "vmap"])
def test_sparse_arguments_are_not_tried(name: str) -> None:
    entry = tried(name, torch.sparse.mm, torch.eye(3, dtype=X.dtype).to_sparse(), X)
    assert (entry.status, entry.message) == ("not_applicable", "not tried with sparse arguments")
