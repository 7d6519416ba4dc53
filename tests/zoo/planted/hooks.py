"""Hooks that change gradients, and backwards that draw other random numbers than the forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tests.zoo.planted.linear import multiplied_entry
from tests.zoo.planted.row import FRONT, WEIGHT, HandWritten, Planted, Problem, plant, sandwich


def hooked(hook: Callable[[nn.Module], None]) -> Callable[[bool], Problem]:
    """Front → layer (Linear) → back, with a hook put on when wrong."""

    def build(wrong: bool) -> Problem:
        problem = sandwich(lambda _: nn.Linear(3, 3))(wrong)
        if wrong:
            hook(problem.model)
        return problem

    return build


def on_weight(change: Callable[[Tensor], Tensor]) -> Callable[[bool], Problem]:
    def hook(model: nn.Module) -> None:
        weight = model.get_parameter("layer.weight")
        weight.register_hook(change)

    return hooked(hook)


def on_input_gradient(change: Callable[[Tensor], Tensor]) -> Callable[[bool], Problem]:
    def hook(model: nn.Module) -> None:
        layer = model.get_submodule("layer")
        layer.register_full_backward_hook(lambda module, grad_in, grad_out: (change(grad_in[0]),))

    return hooked(hook)


def decayed(model: nn.Module) -> None:
    weight = model.get_parameter("layer.weight")
    weight.register_hook(lambda g: g + 0.1 * weight.detach())


def hook_bugs() -> Iterator[Planted]:
    yield plant("hook-loss-scale", on_weight(lambda g: g * 65536), WEIGHT, "scaled", "layer.weight")
    yield plant("hook-clamps", on_weight(lambda g: g.clamp(-0.02, 0.02)), WEIGHT, "clipped", "layer.weight")
    yield plant("hook-clips-norm", on_weight(lambda g: g * (0.01 / g.norm())), WEIGHT, "clipped", "layer.weight")
    yield plant("hook-weight-decay", hooked(decayed), WEIGHT, "weight_decay", "layer.weight")
    yield plant("hook-freezes-a-row", on_weight(multiplied_entry((1,), 0.0)), WEIGHT, "partial", "layer.weight")
    yield plant("hook-zero", on_weight(torch.zeros_like), WEIGHT, "missing", "layer.weight")
    yield plant("backward-hook-clamps", on_input_gradient(lambda g: g.clamp(-0.01, 0.01)), FRONT, "propagated")
    yield plant("backward-hook-scales", on_input_gradient(lambda g: g * 0.1), FRONT, "scaled")


def dropout_mask(x: Tensor) -> Tensor:
    return (torch.rand_like(x) < 0.5).to(x.dtype)


class Dropped(nn.Module):
    """Dropout by hand; wrong: a backward that forgets the mask, or the scale 1/(1 − p)."""

    def __init__(self, mistake: str, wrong: bool) -> None:
        super().__init__()
        self.mistake = mistake if wrong else ""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = dropout_mask(x)
        if not self.mistake:
            return x * mask * 2
        kept = mask if self.mistake == "scale" else torch.full_like(mask, 2.0)
        return HandWritten.apply(lambda a: a * mask * 2, lambda g, a: (g * kept,), x)


class Recomputed(nn.Module):
    """A block recomputed in backward; wrong: without the random state, so that dropout draws another mask."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(self._block, x, use_reentrant=False, preserve_rng_state=not self.wrong)

    def _block(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(torch.tanh(self.inner(x)), 0.5, self.training)


def random_bugs() -> Iterator[Planted]:
    yield plant("dropout-mask-forgotten", sandwich(lambda w: Dropped("mask", w)), FRONT, "unmasked", mode="train")
    yield plant("dropout-scale-forgotten", sandwich(lambda w: Dropped("scale", w)), FRONT, "scaled", mode="train")
    inner = ("layer.inner.weight", "layer.inner.bias")
    yield plant("checkpoint-draws-another-mask", sandwich(Recomputed, 6), FRONT + inner, "unknown", mode="train")
