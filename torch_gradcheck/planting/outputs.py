"""Taps on the outputs of modules: the gradient that arrives for each is seen, or changed, before the module gets it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import nn

from torch_gradcheck.objective.nested import rebuilt, tensors_in
from torch_gradcheck.objective.unseen import unit_dimension
from torch_gradcheck.planting.faults import Change
from torch_gradcheck.torch_internals.modules import named_modules
from torch_gradcheck.torch_internals.transforms import innermost, is_wrapped, outside_transforms

Place = tuple[int, int]
"""The number of a call of a module, and the number of a tensor in its output."""

Tap = Callable[[str, Place, torch.Tensor], Change | None]
"""Is told of a tensor in the output of a module; returns what is done to the gradient that arrives for it."""


@contextmanager
def tapped(modules: Mapping[str, nn.Module], tap: Tap) -> Iterator[None]:
    """Taps the outputs of modules, by name, in every call of them inside the block.

    Values stay what they are. A module that puts out its own input, or a leaf, puts out a copy of it: the gradient of
    the tensor itself comes from other places, too.
    """
    handles = []
    try:
        for name, module in modules.items():
            handles.append(nn.Module.register_forward_hook(module, _hook(name, tap), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, tap: Tap) -> Callable[..., Any]:
    calls: Iterator[int] = count()

    def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        call, positions = next(calls), count()
        foreign = {id(tensor) for _, tensor in tensors_in((args, kwargs))}
        replaced: dict[int, torch.Tensor] = {}

        def through(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in replaced:
                place, replaced[id(tensor)] = (call, next(positions)), tensor
                if is_wrapped(tensor):
                    _tap_inside(tensor, partial(tap, name, place))
                    return tensor
                change = tap(name, place, tensor)
                if change is not None:
                    own = tensor.clone() if id(tensor) in foreign or tensor.is_leaf else tensor
                    own.register_hook(change)
                    replaced[id(tensor)] = own
            return replaced[id(tensor)]

        result = rebuilt(output, through)
        return result if any(id(own) != key for key, own in replaced.items()) else None

    return after


def _tap_inside(tensor: torch.Tensor, tap: Callable[[torch.Tensor], Change | None]) -> None:
    """Taps the ordinary tensor inside of one that vmap works with: it is that one which J's graph goes through."""
    with outside_transforms():
        inside = innermost(tensor)
        change = tap(inside)
        if change is not None and not inside.is_leaf:
            inside.register_hook(change)


@dataclass
class OutputGradient:
    """What arrived for one tensor in the output of a module.

    Attributes:
        shape: of the tensor.
        dimension: along which its units lie.
        largest: the largest absolute value of an entry.
        at_largest: where it is.
        idle: the units for which exactly 0 arrived on the whole batch.
    """

    shape: tuple[int, ...]
    dimension: int
    largest: float
    at_largest: tuple[int, ...]
    idle: list[int]


@dataclass
class Flow:
    """What one module put out, and which gradients came back for it, in one evaluation of J with its backward.

    Attributes:
        calls: how often it was called.
        differentiable: whether a tensor of its output needs a gradient.
        without_grad: whether autograd was off in every call.
        arrived: by place, the gradient that came back.
    """

    calls: int = 0
    differentiable: bool = False
    without_grad: bool = True
    arrived: dict[Place, OutputGradient] = field(default_factory=dict)

    @property
    def largest(self) -> float:
        """The largest absolute value that arrived; 0 where nothing did."""
        return max((each.largest for each in self.arrived.values()), default=0.0)


class Flows:
    """The `Flow` of every module, by name; `tap` is to be given to `tapped`."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(named_modules(model))
        self.of = {name: Flow() for name in self.modules}
        self._calls: Counter[str] = Counter()

    def tap(self, name: str, place: Place, tensor: torch.Tensor) -> Change | None:
        """Notes the tensor now, and its gradient when it comes."""
        flow = self.of[name]
        flow.calls = max(flow.calls, place[0] + 1)
        flow.without_grad &= not torch.is_grad_enabled()
        if not tensor.requires_grad:
            return None
        flow.differentiable = True
        dimension = unit_dimension(tensor, self.modules[name]) if tensor.dim() else 0

        def keep(gradient: torch.Tensor) -> torch.Tensor:
            if gradient.numel():
                flow.arrived[place] = _seen(gradient.detach(), dimension)
            return gradient

        return keep


def _seen(gradient: torch.Tensor, dimension: int) -> OutputGradient:
    sizes = torch.nan_to_num(gradient.abs(), nan=torch.inf)
    at = torch.unravel_index(sizes.argmax(), sizes.shape) if sizes.dim() else ()
    units = sizes.movedim(dimension, 0).reshape(sizes.shape[dimension], -1) if sizes.dim() else sizes.reshape(1, 1)
    return OutputGradient(
        tuple(gradient.shape),
        dimension,
        float(sizes.max()),
        tuple(int(index) for index in at),
        (units == 0).all(dim=1).nonzero().flatten().tolist(),
    )
