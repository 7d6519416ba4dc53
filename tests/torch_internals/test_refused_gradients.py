"""What torch says of a Function's backward, read from exceptions that torch raises, and from nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import Function

from torch_gradcheck.torch_internals.refused_gradients import (
    code_in_a_backward,
    is_of_calling_backward,
    is_of_returned_gradients,
    refused_position,
    returned_under_vmap,
)

SAID = "function F returned an incorrect number of gradients (expected 2, got 1)"


def run(backward: Any) -> tuple[Exception, Any]:
    """What a backward of a sum of a constant and a weight ends in, and the node."""

    def forward(ctx: Any, k: float, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * k + w

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)} if backward else {}
    function = type("Sum", (Function,), {"forward": staticmethod(forward), **methods})
    y = function.apply(2.0, torch.ones(3), torch.ones(3, requires_grad=True))
    with pytest.raises(Exception) as caught:  # noqa: PT011  any
        y.sum().backward()
    return caught.value, y.grad_fn


@pytest.mark.parametrize(
    ("returned", "position"),
    [
        ((None, None, torch.ones(2)), 2),
        ((None, None, 1), 2),
        ((1.0, None, None), 0),
        ((None,), None),
        ((None, None, torch.ones(3) * 1j), 2),
        ((None, None, Function), 2),
    ],
    ids=["shape", "no tensor", "of a number", "too few", "complex", "class"],
)
def test_returned_gradients(returned: tuple[Any, ...], position: int | None) -> None:
    """The index that torch tells counts tensors; a constant one has its place among these."""
    error, node = run(lambda _, grad: returned)
    assert is_of_returned_gradients(error)
    assert not is_of_calling_backward(error)
    assert refused_position(error, node, returned) == position


@pytest.mark.parametrize("backward", [lambda _: None, lambda _, g, h: None], ids=["fewer", "more"])
def test_calls(backward: Any) -> None:
    error, _ = run(backward)
    assert is_of_calling_backward(error)
    assert not is_of_returned_gradients(error)


def raises(_: Any, grad: torch.Tensor) -> None:
    raise RuntimeError(SAID)


def calls_wrongly(_: Any, grad: torch.Tensor) -> None:
    raises(grad)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("backward", [raises, calls_wrongly, None, lambda _, grad: grad @ grad[:2]])
def test_what_a_backward_raises_itself_or_where_there_is_none(backward: Any) -> None:
    error, _ = run(backward)
    assert not is_of_returned_gradients(error)
    assert not is_of_calling_backward(error)


def test_nothing_has_run_a_backward() -> None:
    assert not is_of_returned_gradients(RuntimeError(SAID))
    assert not is_of_calling_backward(TypeError())


def test_the_code_that_a_backward_has_called() -> None:
    error, _ = run(calls_wrongly)
    assert code_in_a_backward(error) is calls_wrongly.__code__
    assert code_in_a_backward(RuntimeError(SAID)) is None


class Doubled(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad[:1]


def test_what_a_backward_has_returned_under_vmap() -> None:
    y = torch.vmap(Doubled.apply)(torch.ones(4, 3, requires_grad=True))
    with pytest.raises(RuntimeError) as caught:
        y.sum().backward()
    assert is_of_returned_gradients(caught.value)
    found = returned_under_vmap(caught.value)
    assert found is not None
    assert ([tuple(each.shape) for each in found.returned], found.wanted) == ([(1,)], ((3,),))
    assert returned_under_vmap(RuntimeError(SAID)) is None
