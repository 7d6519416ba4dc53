"""The hooks that a backward runs are seen, those that were there before and those that it registers, and put back."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from torch_gradcheck.torch_internals.watched_hooks import HookKind, HookWatch, tensors_with_hooks


def halved(grad: Tensor) -> Tensor:
    return grad / 2


def test_hooks_on_tensors_and_modules() -> None:
    layer = nn.Linear(2, 2)
    seen: list[str] = []
    layer.weight.register_hook(halved)
    layer.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append("module"))
    watch = HookWatch([layer.weight], [layer], lambda: "here", nullcontext())
    with watch:
        y = layer(torch.ones(1, 2, requires_grad=True))
        y.register_hook(lambda grad: seen.append("tensor"))
        y.sum().backward()
    assert seen == ["tensor", "module"]
    assert watch.last is not None
    assert watch.last.kind in (HookKind.MODULE, HookKind.TENSOR)
    assert watch.last_to_change is not None
    assert (watch.last_to_change.hook, watch.last_to_change.owner) == (halved, layer.weight)
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[0.5, 0.5]] * 2
    assert list((layer.weight._backward_hooks or {}).values()) == [halved]
    assert [name for name, _ in tensors_with_hooks(layer)] == ["weight"]


def test_where_one_was_registered() -> None:
    x = torch.ones(2, requires_grad=True)
    watch = HookWatch([], [], lambda: "here", nullcontext())
    with watch:
        y = 2 * x
        y.register_hook(halved)
        y.sum().backward()
    assert watch.last is not None
    assert (watch.last.hook, watch.last.place, watch.last.is_finished) == (halved, "here", True)
