"""What torch refuses of J's graphs, and of backwards that J runs itself, is told with the line and what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_gradcheck import check_closure, check_module
from torch_gradcheck.errors import InvalidRequestError, MisfitError

X = torch.ones(2, 3)


class Layer(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.w = function, nn.Parameter(torch.full((3,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.w)


def in_inference(x: Tensor, w: Tensor) -> Tensor:
    with torch.inference_mode():
        y = x.sin()
    return y * w


def through_a_checkpoint(x: Tensor, w: Tensor) -> Tensor:
    y = checkpoint(lambda each: each * w, x, use_reentrant=True)
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]  # type: ignore[union-attr]


def writes_to_a_part(x: Tensor, w: Tensor) -> Tensor:
    w[0].zero_()
    return x * w


def keeps(x: Tensor, w: Tensor) -> Tensor:
    y = (x * w).detach()
    y.retain_grad()
    return x * w


def hooks(x: Tensor, w: Tensor) -> Tensor:
    (x * w).detach().register_hook(lambda grad: grad)
    return x * w


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "leaf": (lambda x, w: x * w.mul_(2), "writes to a parameter, or another leaf"),
    "part of a leaf": (writes_to_a_part, "writes to part of a parameter"),
    "numpy": (lambda x, w: torch.from_numpy((x * w).numpy()), "leaves torch for numpy"),
    "inference": (in_inference, "computes with what was made under torch.inference_mode"),
    "detached": (
        lambda x, w: torch.autograd.grad(w.detach().sum(), w)[0],
        "asks for the gradient of something",
    ),
    "another": (lambda x, w: torch.autograd.grad(x.sum(), w)[0], "asks for a gradient of a tensor in which the"),
    "several": (lambda x, w: torch.autograd.grad(x * w, w)[0], "runs a backward from a tensor with several entries"),
    "hook": (hooks, "registers a hook on a tensor that requires no gradient"),
    "kept gradient": (keeps, "has a tensor that requires no gradient keep it"),
    "reentrant": (
        through_a_checkpoint,
        "asks torch.autograd.grad for a gradient that goes through a reentrant",
    ),
}


@pytest.mark.parametrize(("function", "words"), REFUSED.values(), ids=REFUSED)
def test_what_the_code_does_is_told(function: Callable[[Tensor, Tensor], Tensor], words: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), Layer(function))
    with pytest.raises(MisfitError, match=rf"^'1' \(Layer\), at \S*test_refused_graphs.py:\d+, {words}") as caught:
        check_module(model, torch.sum, X)
    assert isinstance(caught.value, RuntimeError)
    assert str(caught.value.__cause__).partition(". ")[0].rstrip(".") in str(caught.value)


def test_a_second_backward_of_a_closure() -> None:
    model = nn.Linear(3, 1)

    def closure() -> Tensor:
        loss: Tensor = model(X).sum()
        loss.backward()
        loss.backward()
        return loss

    with pytest.raises(MisfitError, match=r"^closure \(closure at .*\), at \S*, runs a backward through a graph"):
        check_closure(model, closure)


def test_words_that_the_user_raises_come_through() -> None:
    error = RuntimeError("element 0 of tensors does not require grad and does not have a grad_fn")

    def loss(y: Tensor) -> Tensor:
        raise error

    with pytest.raises(RuntimeError) as caught:
        check_module(nn.Linear(3, 1), loss, X)
    assert caught.value is error


def test_a_module_whose_output_has_no_numbers() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Layer(lambda x, w: (x * w).to("meta")))
    with pytest.raises(InvalidRequestError, match=r"^'1' \(Layer\) returned a tensor on the meta device"):
        check_module(model, torch.sum, X)
