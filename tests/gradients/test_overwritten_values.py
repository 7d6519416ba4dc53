"""A value that was written to after it was kept for the backward is told with the line that has written."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import check_closure, check_function, check_module
from torch_gradcheck.errors import MisfitError

X = torch.ones(2, 3)
HERE = r"\S*test_overwritten_values\.py:\d+"


def of_a_result(x: Tensor) -> Tensor:
    y = (2 * x).exp()
    y += 1
    return y


def of_a_part(x: Tensor) -> Tensor:
    y = (2 * x).sigmoid()
    y[0] = 0
    return y


def of_an_operand(x: Tensor) -> Tensor:
    factor = torch.full((3,), 2.0)
    y = x * factor
    factor.add_(1)
    return y


WRITES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "result": (of_a_result, rf"of shape \(2, 3\), the output of Exp, .* by torch.Tensor.add_ at {HERE}"),
    "part": (of_a_part, rf"the output of Sigmoid, .* by torch.Tensor.__setitem__ at {HERE}"),
    "operand": (of_an_operand, rf"a tensor of shape \(3,\) is kept .* by torch.Tensor.add_ at {HERE}"),
}


class Layer(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(3, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x))


@pytest.mark.parametrize(("function", "words"), WRITES.values(), ids=WRITES)
def test_the_line_that_has_written(function: Callable[[Tensor], Tensor], words: str) -> None:
    with pytest.raises(MisfitError, match=words):
        check_function(function, (X,))
    with pytest.raises(MisfitError, match=rf"{words}, in 'layer' \(Layer\) \(torch says: one of the variables"):
        check_module(nn.Sequential(OrderedDict(layer=Layer(function))), torch.sum, X)


def test_a_write_that_disturbs_nothing() -> None:
    def function(x: Tensor) -> Tensor:
        y = 2 * x
        y += 1
        return y

    assert check_function(function, (X,)).passed


def test_a_backward_of_a_closure_behind_a_write() -> None:
    model = nn.Linear(3, 1)

    def closure() -> Tensor:
        y = model(X).exp()
        y.mul_(2)
        loss: Tensor = y.sum()
        loss.backward()
        return loss

    with pytest.raises(MisfitError, match=rf"the output of Exp, .* by torch.Tensor.mul_ at {HERE}"):
        check_closure(model, closure)
