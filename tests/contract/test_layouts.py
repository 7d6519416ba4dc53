"""Arguments and gradients in other memory layouts: kernels that take them for contiguous, and functions that do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract.entry import entry
from tests.zoo.functions.case import normal
from tests.zoo.functions.memory import (
    ClipsGradient,
    LikeInput,
    OldSquare,
    ReadsGradientMemory,
    ReadsInputMemory,
    ViewsGradient,
)
from tests.zoo.source import def_line

X, W = normal(3, 4, dtype=torch.float64), normal(3, 4, seed=1, dtype=torch.float64)


class Product(torch.autograd.Function):
    """x · w of two tensors of one shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return grad * w, grad * x


def raw(x: Tensor) -> Tensor:
    """What a kernel reads that takes x for contiguous."""
    memory = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())  # type: ignore[call-overload]
    return torch.cat([memory, memory.new_zeros(x.numel())])[: x.numel()].view(x.shape)


class RawWeight(Product):
    """Reads w as if it were contiguous, backward only."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return grad * raw(w), grad * x


class SameStrides(Product):
    """Takes the strides of x for those of the gradient."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return grad * w, grad * x if x.stride() == grad.stride() or grad.is_contiguous() else raw(grad) * x


class Refuses(Product):
    """Takes contiguous arguments only, and says so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        if not x.is_contiguous():
            raise ValueError("x must be contiguous")
        return Product.forward(ctx, x, w)


class ViewsSaved(OldSquare):
    """Accepts any layout and fails backward."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return (2 * x.view(-1) * grad.reshape(-1)).view(x.shape)


class Rows(torch.autograd.Function):
    """x[index], whose index is read as if it were contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.index, ctx.shape = raw(index), x.shape
        return x[ctx.index]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.new_zeros(ctx.shape).index_add_(0, ctx.index, grad), None


@pytest.mark.parametrize(
    ("function", "inputs", "said"),
    [
        (ReadsInputMemory.apply, (X,), "with x transposed (shape (3, 4), strides (1, 3)): output is "),
        (ReadsInputMemory.apply, (X[0],), "with x sliced (shape (4,), strides (2,)): output is "),
        (RawWeight.apply, (X, W), "with w transposed (shape (3, 4), strides (1, 3)): the gradient of x is "),
        (LikeInput.apply, (X,), "with x transposed (shape (3, 4), strides (1, 3)): the gradient of x is "),
        (
            ViewsSaved.apply,
            (X,),
            "with x transposed (shape (3, 4), strides (1, 3)) the backward raises Runtime",
        ),
        (Rows.apply, (X, torch.tensor([0, 2])), "with index sliced (shape (2,), strides (2,)): output is "),
        (
            ReadsGradientMemory.apply,
            (X,),
            "with the gradient of output expanded from one number, as .sum().backward() sends it "
            "(shape (3, 4), strides (0, 0)): the gradient of x is ",
        ),
        (
            SameStrides.apply,
            (X, W),
            "with the gradient of output expanded from one number, as .sum().backward() sends it ",
        ),
        (
            ViewsGradient.apply,
            (X,),
            "with the gradient of output transposed (shape (3, 4), strides (1, 3)): the backward ",
        ),
    ],
    ids=["input", "vector", "saved", "like the input", "views", "index", "gradient", "strides", "gradient by view"],
)
def test_what_is_taken_for_contiguous_fails_with_argument_and_strides(function: Any, inputs: Any, said: str) -> None:
    found = entry("layouts", function, inputs)
    assert found.status == "failed"
    assert found.message.startswith(said)
    assert "contiguous copy" in found.message


def test_a_backward_is_told_by_its_line() -> None:
    line = def_line(RawWeight.backward)
    assert entry("layouts", RawWeight.apply, (X, W)).message.endswith(
        f"as with a contiguous copy (RawWeight.backward at tests/contract/test_layouts.py:{line})"
    )


def test_a_forward_that_refuses_a_layout_is_not_applicable() -> None:
    found = entry("layouts", Refuses.apply, (X, W))
    assert found.status == "not_applicable"
    assert found.message.startswith(
        "the function refuses x transposed (shape (3, 4), strides (1, 3)): ValueError: x must be contiguous (tests/"
    )
    assert found.message.endswith(", and 3 more layouts")


def two(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.sin(), ViewsGradient.apply(x)  # type: ignore[no-untyped-call]


def test_of_several_outputs_the_one_whose_gradient_is_misread_is_told() -> None:
    found = entry("layouts", two, (X,))
    assert found.message.startswith("with the gradient of output[1] transposed (shape (3, 4), strides (1, 3))")


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (Product.apply, (X, W)),
        (ClipsGradient.apply, (X,)),
        (lambda x, w: torch.max(x * w, 0), (X, W)),
        (lambda x: torch.sort(x, stable=False), (normal(40, 30, dtype=torch.float64),)),
        (lambda x, w: w.reshape(-1)[x.argmax()] * x, (X, W)),
        (lambda x: x.median(0).values, (normal(5, 4, dtype=torch.float64),)),
        (lambda x: x.clamp(min=0), (X * (X > 0),)),
        (lambda x, w: torch.linalg.inv(x @ w.t()), (X, W)),
        (lambda x: torch.linalg.svd(x, full_matrices=False), (X,)),
        (lambda x: torch.stft(x, 16, return_complex=True, window=torch.ones(16)), (normal(3, 40),)),
        (lambda x: x.sum(), (X[0, 0],)),
        (lambda x, w: x * w, (torch.view_as_complex(normal(3, 4, 2)), W)),
        (torch.relu_, (X,)),
        (lambda x: x + 1, (normal(0, 3),)),
        (nn.LSTM(4, 3), (normal(5, 2, 4),)),
    ],
    ids=[
        "product",
        "zeroes its gradient",
        "max",
        "sort",
        "argmax",
        "median",
        "clamp-at-0",
        "inverse",
        "svd",
        "stft",
        "0-dim",
        "complex",
        "in-place",
        "empty",
        "lstm",
    ],
)
def test_functions_of_torch_are_not_accused_of_ties_and_poles(function: Any, inputs: Any) -> None:
    found = entry("layouts", function, inputs)
    assert found.status in ("passed", "not_applicable"), found.message


def test_an_expanded_argument_at_a_tie_is_said_not_to_be_tried() -> None:
    found = entry("layouts", lambda x: x.median(0), (normal(5, 4, dtype=torch.float64),))
    assert found.status == "passed"
    assert found.message == "not tried, being at a kink: x expanded (shape (5, 4), strides (0, 1))"


class AtKink(OldSquare):
    """|x| at 0, with an input whose memory is misread: seen beside the kink."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return raw(x).abs()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, 1.0, -1.0) * grad


def test_at_a_kink_layouts_are_tried_beside_it() -> None:
    found = entry("layouts", AtKink.apply, (X * torch.tensor([0.0, 1.0, 1.0, 1.0]),))
    assert found.status == "failed"


def seeded(x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.functional.dropout(x)


@pytest.mark.parametrize("function", [nn.functional.dropout, seeded], ids=["dropout", "without a trace"])
def test_random_numbers_are_others_in_another_layout(function: Any) -> None:
    found = entry("layouts", function, (normal(5, 6),))
    assert found.status == "not_applicable"
    assert found.message == "the function draws random numbers, and draws others in another layout"


def takes_for_contiguous(x: Tensor) -> Tensor:
    return torch.as_strided(x, x.shape, x.contiguous().stride()).sin()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (ReadsInputMemory.apply, "(ReadsInputMemory.forward at tests/zoo/functions/memory.py:"),
        (takes_for_contiguous, f"({takes_for_contiguous.__name__} at tests/contract/test_layouts.py:"),
    ],
    ids=["Function", "plain"],
)
def test_an_output_that_is_wrong_is_told_with_the_forward(function: Any, words: str) -> None:
    found = entry("layouts", function, (X,))
    assert found.status == "failed"
    assert ": output is " in found.message
    assert words in found.message


IMAGES = normal(2, 3, 4, 4, dtype=torch.float64)
VOLUMES = normal(1, 2, 2, 3, 2, dtype=torch.float64)


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def misread(x: Tensor) -> Tensor:
    """The numbers in the order of memory, where the channels are innermost."""
    return x.as_strided(x.shape, x.contiguous().stride()) if is_channels_last(x) else x


class MisreadsGradient(OldSquare):
    """Its backward takes a gradient in channels_last for contiguous."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return OldSquare.backward(ctx, misread(grad))


class ComputesPlainly(OldSquare):
    """Looks at the layout, and is right."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return OldSquare.backward(ctx, grad.contiguous() if is_channels_last(grad) else grad)


@pytest.mark.parametrize("x", [IMAGES, VOLUMES], ids=["images", "volumes"])
def test_channels_last(x: Tensor) -> None:
    word = "in channels_last" + "_3d" * (x.dim() == 5)
    of_gradient = entry("layouts", MisreadsGradient.apply, (x,))
    assert of_gradient.message.startswith(f"with the gradient of output {word} (shape {tuple(x.shape)}, strides (")
    of_input = entry("layouts", lambda x: misread(x).sin(), (x,))
    assert of_input.message.startswith(f"with x {word} (shape {tuple(x.shape)}, strides (")
    assert (of_gradient.status, of_input.status) == ("failed", "failed")
    assert entry("layouts", ComputesPlainly.apply, (x,)).status == "passed"


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 2, 3), nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)])
def test_layers_of_images_pass(layer: nn.Module) -> None:
    assert entry("layouts", layer, (IMAGES,)).status == "passed"
