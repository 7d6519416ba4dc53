"""Functions whose backward runs a backward of its own, so that parameters get their gradient by accumulation.

It is the pattern of checkpoints that are no part of torch, and of reversible layers. Each has wrong twins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.checkpoint import checkpoint

Run = Callable[[Tensor], Tensor]

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def squared(y: Tensor) -> Tensor:
    return y.square().mean()


class Checkpoint(torch.autograd.Function):
    """Runs without a graph; its backward runs again with one, from the same random state, and goes back through it.

    `dummy` requires a gradient, so that the backward runs even where `x` does not.
    """

    @staticmethod
    def forward(ctx: Any, dummy: Tensor, run: Run, x: Tensor) -> Tensor:
        ctx.run, ctx.random = run, torch.get_rng_state()
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run(x)

    @staticmethod
    def again(ctx: Any) -> tuple[Tensor, Tensor]:
        """The input as a leaf, and the output with a graph."""
        (saved,) = ctx.saved_tensors
        x, now = saved.detach().requires_grad_(), torch.get_rng_state()
        torch.set_rng_state(ctx.random)
        with torch.enable_grad():
            y = ctx.run(x)
        torch.set_rng_state(now)
        return x, y

    @classmethod
    def accumulated(cls, ctx: Any, g: Tensor, factor: float = 1.0) -> Tensor:
        """The gradient of the input; those of parameters accumulate."""
        x, y = cls.again(ctx)
        torch.autograd.backward([y], [factor * g])
        assert x.grad is not None
        return x.grad / factor

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor]:  # type: ignore[override]
        return None, None, Checkpoint.accumulated(ctx, g)


class Refusing(Checkpoint):
    """Refuses to be asked for gradients, as torch's reentrant checkpoint does."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor]:  # type: ignore[override]
        if not torch.autograd._is_checkpoint_valid():  # type: ignore[attr-defined]
            raise RuntimeError("not compatible with .grad()")
        return None, None, Checkpoint.accumulated(ctx, g)


class Writing(Checkpoint):
    """Adds to `.grad` itself, as kernels do that save a copy of the gradient."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor]:  # type: ignore[override]
        x, y = Checkpoint.again(ctx)
        parameters = list(ctx.run.parameters())
        of_input, *gradients = torch.autograd.grad(y, [x, *parameters], g)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return None, None, of_input


class FromAnEdge(Checkpoint):
    """Starts its backward at an edge of the graph."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor | None]:  # type: ignore[override]
        x, y = Checkpoint.again(ctx)
        torch.autograd.backward([get_gradient_edge(y)], [g])
        return None, None, x.grad


class WritingTwice(Writing):
    """Wrong: it writes the gradient of the first weight twice."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor]:  # type: ignore[override]
        gradients = Writing.backward(ctx, g)
        weight = ctx.run[0].weight
        weight.grad = 2 * weight.grad
        return gradients


class Doubling(Checkpoint):
    """Wrong: what accumulates is doubled."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor]:  # type: ignore[override]
        return None, None, Checkpoint.accumulated(ctx, g, factor=2.0)


class Repeating(Checkpoint):
    """Wrong: it goes back twice."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor]:  # type: ignore[override]
        Checkpoint.accumulated(ctx, g)
        return None, None, Checkpoint.accumulated(ctx, g)


class Forgetting(Checkpoint):
    """Wrong: it runs the last layer again with a detached bias."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor]:  # type: ignore[override]
        *layers, last = ctx.run
        ctx.run = lambda x: nn.functional.linear(nn.Sequential(*layers)(x), last.weight, last.bias.detach())
        return None, None, Checkpoint.accumulated(ctx, g)


class OtherDraws(Checkpoint):
    """Wrong where something is drawn: it runs again from whatever random state there is."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor]:  # type: ignore[override]
        ctx.random = torch.Generator().manual_seed(7).get_state()
        return None, None, Checkpoint.accumulated(ctx, g)


class Reversible(torch.autograd.Function):
    """y₁ = x₁ + f(x₂), y₂ = x₂ + g(y₁); the backward computes x from y, and the forward frees what it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: nn.Module, g: nn.Module, keep: bool) -> Tensor:
        ctx.blocks = f, g
        with torch.no_grad():
            x1, x2 = x.chunk(2, dim=1)
            y1 = x1 + f(x2)
            y = torch.cat([y1, x2 + g(y1)], dim=1)
        ctx.x, ctx.y, ctx.keep = x, y, keep
        if not keep:
            x.untyped_storage().resize_(0)
        return y.detach()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        f, g = ctx.blocks
        y1, y2 = (each.detach() for each in ctx.y.chunk(2, dim=1))
        dy1, dy2 = dy.chunk(2, dim=1)
        g_of_y1, y1_grad = _through(g, y1, dy2)
        x2, dx1 = y2 - g_of_y1, dy1 + y1_grad
        f_of_x2, x2_grad = _through(f, x2, dx1)
        if not ctx.keep:
            ctx.x.untyped_storage().resize_(ctx.x.numel() * ctx.x.element_size())
            with torch.no_grad():
                ctx.x.copy_(torch.cat([y1 - f_of_x2, x2], dim=1))
        return torch.cat([dx1, dy2 + x2_grad], dim=1), None, None, None


def _through(block: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """What a block puts out, and the gradient of its input; those of its parameters accumulate."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = block(x)
    y.backward(gradient)  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return y.detach(), x.grad


class Shared(torch.autograd.Function):
    """Puts out what it is given; its backward goes back through the graph of what the list holds, a part of J's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, holder: list[Tensor]) -> Tensor:
        ctx.holder = holder
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None]:  # type: ignore[override]
        torch.autograd.backward(ctx.holder, [g], retain_graph=True)
        return None, None


class Within(nn.Module):
    """A linear layer, a checkpointed block, and a linear layer."""

    def __init__(self, function: type[Checkpoint] = Checkpoint, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Dropout(dropout), nn.Tanh(), nn.Linear(4, 4))
        self.last = nn.Linear(4, 1)
        self.function = function

    def through(self, run: Run, x: Tensor) -> Tensor:
        dummy = torch.ones(1, requires_grad=True)
        return self.function.apply(dummy, run, x)  # type: ignore[no-any-return,no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.through(self.block, self.first(x)))  # type: ignore[no-any-return]


class TwiceUsed(Within):
    """The block is used once more, without a checkpoint: what autograd gives and what accumulates are added up."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(self.through(self.block, self.first(x))))  # type: ignore[no-any-return]


class Tied(Within):
    """A parameter of the block belongs to another module as well."""

    def __init__(self, function: type[Checkpoint] = Checkpoint) -> None:
        super().__init__(function)
        self.twin = nn.Linear(4, 4)
        self.twin.weight = self.block[0].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.through(self.block, self.twin(self.first(x))))  # type: ignore[no-any-return]


class Nested(Within):
    """A checkpoint in a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        def outer(x: Tensor) -> Tensor:
            return self.through(self.block, self.first(x).tanh())

        return self.last(self.through(outer, x))  # type: ignore[no-any-return]


class Reentrant(Within):
    """torch's own reentrant checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.block, self.first(x), use_reentrant=True))  # type: ignore[no-any-return]


class Sharing(Within):
    """The graph is cut behind the first layer, and its gradient gets there by a backward inside of the backward."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        y = Shared.apply(hidden.detach().requires_grad_(), [hidden])  # type: ignore[no-untyped-call]
        return self.last(self.block(y))  # type: ignore[no-any-return]


class Reversing(nn.Module):
    """Two reversible layers, the first of which may be given the batch itself."""

    def __init__(self, keep: bool = False, first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Identity() if first else nn.Linear(4, 4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.Tanh()) for _ in range(4)])
        self.last = nn.Linear(4, 1)
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for f, g in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = Reversible.apply(x, f, g, self.keep)  # type: ignore[no-untyped-call]
        return self.last(x)  # type: ignore[no-any-return]
