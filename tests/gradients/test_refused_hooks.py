"""Hooks that return, or take, what torch does not, are told with their line and what they are on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import check_function, check_module
from torch_gradcheck.errors import MisfitError

X = torch.ones(2, 3)
HERE = r" at \S*test_refused_hooks\.py:\d+"


def model_with(register: str, hook: Callable[..., Any]) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    getattr(model[0].weight if register == "register_hook" else model[1], register)(hook)
    return model


FULL, BEFORE, TENSOR = "register_full_backward_hook", "register_full_backward_pre_hook", "register_hook"

REFUSED: dict[str, tuple[str, Callable[..., Any], str]] = {
    "shape": (TENSOR, lambda g: g.sum(0), r"returned a tensor of shape \(3,\) in place of a tensor of shape \(3, 3\)"),
    "number": (TENSOR, lambda g: 3.0, "returned a float in place of a tensor"),
    "complex": (TENSOR, lambda g: g * 1j, "complex128 in place of a tensor"),
    "lower": (TENSOR, lambda g: g.float(), r"check with dtype=torch\.float32"),
    "nothing": (TENSOR, lambda: None, r"has the signature \(\), and torch calls it with the gradient"),
    "full shape": (FULL, lambda m, i, o: (i[0][0],), r"returned \(a tensor of shape \(3,\),\) in place of \(a tensor"),
    "full number": (FULL, lambda m, i, o: (3.0,), r"returned \(a float,\) in place of"),
    "full count": (FULL, lambda m, i, o: (i[0], i[0]), r"3\), a tensor of shape \(2, 3\)\) in place of \(a tensor"),
    "full signature": (FULL, lambda m, i: None, "calls it with the module, grad_input and grad_output"),
    "before, count": (BEFORE, lambda m, o: (o[0], o[0]), "Backward pre hook returned an invalid number"),
    "before, signature": (BEFORE, lambda m: None, "calls it with the module and grad_output"),
}


@pytest.mark.parametrize(("register", "hook", "words"), REFUSED.values(), ids=REFUSED)
def test_what_it_is_on_and_what_is_wrong(register: str, hook: Callable[..., Any], words: str) -> None:
    model = model_with(register, hook)
    place = r" of 0\.weight " if register == TENSOR else r" of '1' \(Tanh\(\)\) "
    with pytest.raises(MisfitError, match=f"^the (backward )?hook lambda{HERE}{place}.*{words}"):
        check_module(model, torch.sum, X)
    owner: Any = model[0].weight if register == TENSOR else model[1]  # type: ignore[index]
    kept = owner._backward_pre_hooks if register == BEFORE else owner._backward_hooks
    assert list(kept.values()) == [hook]


def hooked(hook: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        y = 2 * x
        if y.requires_grad:
            y.register_hook(hook)
        return y.exp()

    return function


class Layer(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_one_on_a_tensor_that_j_makes() -> None:
    function = hooked(lambda grad: grad.sum(0))
    with pytest.raises(MisfitError, match=f"^the hook lambda{HERE} returned a tensor of shape"):
        check_function(function, (X,))
    with pytest.raises(MisfitError, match=rf"^the hook lambda{HERE}, registered in '1' \(Layer\), returned"):
        check_module(nn.Sequential(nn.Linear(3, 3), Layer(function)), torch.sum, X)


def test_what_an_operation_in_one_was_given() -> None:
    with pytest.raises(MisfitError, match=r"lambda, which runs in a backward, at .* calls torch.Tensor.matmul, which"):
        check_function(hooked(lambda grad: grad @ grad), (X,))


def test_what_one_raises_itself_comes_through() -> None:
    error = RuntimeError("hook 'mine' has changed the size of value")

    def raises(grad: Tensor) -> None:
        raise error

    with pytest.raises(RuntimeError) as caught:
        check_function(hooked(raises), (X,))
    assert caught.value is error


def test_a_call_in_one_that_does_not_fit_comes_through() -> None:
    def takes_two(grad: Tensor, factor: float) -> Tensor:
        return factor * grad

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'factor'"):
        check_function(hooked(lambda grad: 2 * takes_two(grad)), (X,))  # type: ignore[call-arg]


def test_right_ones_are_right() -> None:
    assert check_function(hooked(lambda grad: None), (X,)).passed
    assert check_module(model_with(FULL, lambda m, i, o: None), torch.sum, X).passed
