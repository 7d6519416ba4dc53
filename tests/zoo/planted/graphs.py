"""Graphs cut or changed by the forward: detach, no_grad, .data, numpy, saved tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tests.zoo.planted.row import FRONT, WEIGHT, HandWritten, Planted, Problem, plant, sandwich


class Surgery(nn.Module):
    """A block inner(x) whose forward cuts the graph in a named way when wrong."""

    def __init__(self, cut: str, wrong: bool) -> None:
        super().__init__()
        self.cut = cut if wrong else ""
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, f"_{self.cut}" if self.cut else "_right")(x)

    def _right(self, x: Tensor) -> Tensor:
        return x + torch.sigmoid(self.inner(x))

    def _branch_detached(self, x: Tensor) -> Tensor:
        return x + torch.sigmoid(self.inner(x)).detach()

    def _branch_under_no_grad(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            branch = torch.sigmoid(self.inner(x))
        return x + branch

    def _branch_input_detached(self, x: Tensor) -> Tensor:
        return x + torch.sigmoid(self.inner(x.detach()))

    def _skip_through_data(self, x: Tensor) -> Tensor:
        return x.data + torch.sigmoid(self.inner(x))

    def _all_through_data(self, x: Tensor) -> Tensor:
        return x.data + torch.sigmoid(self.inner(x.data))

    def _weight_detached(self, x: Tensor) -> Tensor:
        return x + torch.sigmoid(nn.functional.linear(x, self.inner.weight.detach(), self.inner.bias))

    def _branch_through_numpy(self, x: Tensor) -> Tensor:
        branch = torch.sigmoid(self.inner(x)).detach().numpy().copy()
        return x + torch.from_numpy(branch)


def surgery(cut: str) -> Callable[[bool], Problem]:
    return sandwich(lambda wrong: Surgery(cut, wrong))


class DoubledInPlace(nn.Module):
    """Twice a sigmoid; wrong: doubled through .data, behind the back of the saved tensor."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        if not self.wrong:
            return 2 * y
        y.data.mul_(2)
        return y


class Remembering(nn.Module):
    """A linear layer used twice; wrong: its backward reads the input from the module, so both uses see the last one."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.weight = nn.Parameter(torch.randn(3, 3) / 2)
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.once(torch.tanh(self.once(x)))

    def once(self, x: Tensor) -> Tensor:
        if not self.wrong:
            return x @ self.weight.T
        self.seen = x.detach()
        return HandWritten.apply(lambda a, w: a @ w.T, self.backward, x, self.weight)

    def backward(self, g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        assert self.seen is not None
        return g @ weight, g.T @ self.seen


class Gated(nn.Module):
    """x · exp(s), the scale read from the parameter; wrong: read with .item(), which cuts the graph."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return x * (2.718281828459045 ** self.scale.item() if self.wrong else torch.exp(self.scale))


class MaskedRoot(nn.Module):
    """√x where x > 0, else 0; wrong: the root is taken of everything, and its NaN slope survives the mask."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        safe = x if self.wrong else torch.where(x > 0, x, torch.ones_like(x))
        return torch.where(x > 0, safe.sqrt(), torch.zeros_like(x))


def graph_bugs() -> Iterator[Planted]:
    inner = ("layer.inner.weight", "layer.inner.bias")
    cut_off = {**dict.fromkeys(inner, "missing"), **dict.fromkeys(FRONT, "detached")}
    yield plant("branch-detached", surgery("branch_detached"), FRONT + inner, cut_off)
    yield plant("branch-under-no-grad", surgery("branch_under_no_grad"), FRONT + inner, cut_off)
    yield plant("branch-through-numpy", surgery("branch_through_numpy"), FRONT + inner, cut_off)
    yield plant("branch-input-detached", surgery("branch_input_detached"), FRONT, "detached")
    yield plant("skip-through-data", surgery("skip_through_data"), FRONT, "detached")
    yield plant("all-through-data", surgery("all_through_data"), FRONT, "missing")
    yield plant("weight-detached", surgery("weight_detached"), ("layer.inner.weight",), "missing")
    yield plant("saved-tensor-changed-through-data", sandwich(DoubledInPlace), FRONT, "slope")
    yield plant("saved-input-of-the-last-use", sandwich(Remembering), WEIGHT)
    yield plant("scale-through-item", sandwich(Gated), ("layer.scale",), "missing")
    yield plant("nan-behind-a-mask", sandwich(MaskedRoot), FRONT)
