"""An error of Python's at a `ctx` without what a backward asks for comes through as it is, with a note."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from torch_gradcheck import check_function

X = torch.ones(2, 3)


def unpacks(ctx: Any, grad: Tensor) -> Tensor:
    x, _ = ctx.saved_tensors
    return grad * x  # type: ignore[no-any-return]


def takes_the_second(ctx: Any, grad: Tensor) -> Tensor:
    return grad * ctx.saved_tensors[1]  # type: ignore[no-any-return]


def takes_an_attribute(ctx: Any, grad: Tensor) -> Tensor:
    return grad * ctx.x  # type: ignore[no-any-return]


def raises(ctx: Any, grad: Tensor) -> None:
    raise ValueError("mine")


def elsewhere(ctx: Any, grad: Tensor) -> Tensor:
    gradients = [grad]
    return gradients[len(gradients)]


def function_with(backward: Callable[..., Any], *saved: int) -> Any:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.y = 1
        ctx.save_for_backward(*[x for _ in saved])
        return x.clone()

    return type("F", (Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)}).apply


@pytest.mark.parametrize(
    ("function", "kind", "notes"),
    [
        (function_with(unpacks), ValueError, "ctx.saved_tensors has nothing: forward saves by ctx.save_for_backward"),
        (function_with(takes_the_second, 1), IndexError, "ctx.saved_tensors has 1 tensor: forward saves"),
        (function_with(takes_an_attribute), AttributeError, "ctx has no 'x': what forward has kept there is y."),
        (function_with(elsewhere), IndexError, ""),
        (function_with(raises), ValueError, ""),
    ],
    ids=["nothing saved", "too few saved", "attribute", "elsewhere", "raises"],
)
def test_the_note(function: Any, kind: type[Exception], notes: str) -> None:
    with pytest.raises(kind) as caught:
        check_function(function, (X,))
    assert type(caught.value) is kind
    assert "\n".join(getattr(caught.value, "__notes__", ())).startswith(notes)
    assert bool(notes) is hasattr(caught.value, "__notes__")
