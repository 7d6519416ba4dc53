"""What a Function does with memory that is not its own, and what it thinks of its layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tests.zoo.functions.case import Case, normal
from tests.zoo.functions.styles import Square


class OldSquare(torch.autograd.Function):
    """x², right; the others below differ in one line."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class WritesToGradient(OldSquare):
    """Uses the gradient that it is given for scratch space."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad.mul_(2 * x)


class ClipsGradient(OldSquare):
    """Writes to the gradient after it has used it."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        gradient = 2 * x * grad
        grad.zero_()
        return gradient


class WritesToInput(torch.autograd.Function):
    """(2x)², doubling the caller's x on the way, and saying so to nobody."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.mul_(2)
        ctx.save_for_backward(x.clone())
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (doubled,) = ctx.saved_tensors
        return 4 * doubled * grad


class ReadsGradientMemory(OldSquare):
    """Takes the gradient for contiguous, as a kernel does that is given its pointer."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        memory = torch.empty(0, dtype=grad.dtype).set_(grad.untyped_storage())
        padded = torch.cat([memory[: x.numel()], memory.new_zeros(max(x.numel() - memory.numel(), 0))])
        return 2 * x * padded.view(x.shape)


class ViewsGradient(OldSquare):
    """Flattens the gradient by view, which a transposed or expanded one refuses."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return (2 * x.reshape(-1) * grad.view(-1)).view(x.shape)


class ReadsInputMemory(torch.autograd.Function):
    """Takes its input for contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        memory = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
        padded = torch.cat([memory[: x.numel()], memory.new_zeros(max(x.numel() - memory.numel(), 0))])
        ctx.save_for_backward(x)
        return padded.view(x.shape) ** 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return OldSquare.backward(ctx, grad)


class ViewsInput(torch.autograd.Function):
    """Flattens its input by view: it refuses what it cannot flatten, and tells so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view(-1) ** 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x * grad.reshape(x.shape)


class LikeInput(OldSquare):
    """A gradient written into memory laid out like the input's, in the order of its own layout."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        gradient = torch.empty_like(x)
        flat = gradient.as_strided((gradient.numel(),), (1,))
        flat.copy_((2 * x * grad).reshape(-1))
        return gradient


class KeepsItsOutput(torch.autograd.Function):
    """exp x; the output hangs on the context, and the context on the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.y = x.exp()
        return ctx.y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.y


class SavesItsOutput(torch.autograd.Function):
    """exp x; the output is saved as outputs should be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return grad * y


class WritesToItsOutput(SavesItsOutput):
    """Computes the gradient in the memory of the output that it has saved, past autograd's counters of versions."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return y.data.mul_(grad)


class WritesToItsInput(OldSquare):
    """Leaves its saved input, which is the caller's, changed by the backward."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return x.data.mul_(2) * grad


SEEN: list[Tensor] = []


class KeepsAList(OldSquare):
    """All inputs that it has ever seen, in a list of the module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        SEEN.append(x)
        return OldSquare.forward(ctx, x)


def memory() -> list[Case]:
    """All of them."""
    x = (normal(3, 4),)
    return [
        Case("all of it kept", OldSquare.apply, x, entries={"grad_output_kept": "passed", "layouts": "passed"}),
        Case("writes to the gradient", WritesToGradient.apply, x, failed=("grad_output_kept", "layouts")),
        Case("zeroes the gradient after use", ClipsGradient.apply, x, failed=("grad_output_kept",)),
        Case("writes to its input", WritesToInput.apply, x, failed=("inputs_kept",)),
        Case("writes to what it has saved", WritesToItsInput.apply, x, failed=("inputs_kept", "repeatable", "vmap")),
        Case("takes the gradient for contiguous", ReadsGradientMemory.apply, x, failed=("layouts",)),
        Case("flattens the gradient by view", ViewsGradient.apply, x, failed=("layouts",)),
        Case("takes its input for contiguous", ReadsInputMemory.apply, x, failed=("layouts",)),
        Case("flattens its input by view", ViewsInput.apply, x, entries={"layouts": "not_applicable"}),
        Case("fills memory laid out like its input", LikeInput.apply, x, failed=("layouts",)),
        Case("output on the context", KeepsItsOutput.apply, x, failed=("released",)),
        Case("output saved", SavesItsOutput.apply, x, entries={"released": "passed", "second_order": "passed"}),
        Case(
            "input overwritten in the backward",  # which then runs once for each graph, and no second time
            WritesToItsInput.apply,
            x,
            failed=("inputs_kept", "repeatable", "vmap"),
        ),
        Case("output overwritten in the backward", WritesToItsOutput.apply, x, failed=("repeatable",)),
        Case("inputs in a list of the module", KeepsAList.apply, x, failed=("released",)),
        Case("transposed arguments", Square.apply, (normal(4, 3).T,)),
    ]
