"""The tensors of torch.func: those that a transform (vmap, grad, jvp, ...) has wrapped, and the numbers inside them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import _vmap_internals

from torch_gradcheck.torch_internals.dispatch import transforms_in_force
from torch_gradcheck.torch_internals.missing import internal


def is_wrapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one that a transform works with.

    It stands for numbers as long as the transform runs. Afterwards it has none: to copy it, or to read it, raises.
    """
    functorch = getattr(torch._C, "_functorch", None)
    test = getattr(functorch, "is_functorch_wrapped_tensor", None)
    return test is not None and bool(test(tensor))


def innermost(tensor: torch.Tensor) -> torch.Tensor:
    """The ordinary tensor inside of a wrapped one, as it is there; any other as it is."""
    while is_wrapped(tensor):
        tensor = _functorch("get_unwrapped")(tensor)
    return tensor


def numbers_in(tensor: torch.Tensor) -> torch.Tensor:
    """The ordinary tensor inside of a wrapped one, the dimensions that vmap has hidden in front.

    Those of the outermost vmap come first. Any other tensor comes as it is.
    """
    if not is_wrapped(tensor):
        return tensor
    with outside_transforms():
        inner, hidden = tensor, list[int]()
        while is_wrapped(inner):
            dimension = _functorch("maybe_get_bdim")(inner)
            hidden = [*([dimension] if dimension >= 0 else []), *hidden]
            inner = _functorch("get_unwrapped")(inner)
        for moved, dimension in enumerate(hidden):
            inner = inner.movedim(moved + dimension, moved)
        return inner


class _WithoutTransforms:
    """Sets the transforms in force aside; a class and not a generator, so that an interrupt cannot leave them there."""

    def __init__(self) -> None:
        self._aside: list[Any] = []

    def __enter__(self) -> None:
        try:
            while _functorch("peek_interpreter_stack")() is not None:
                self._aside.append(_functorch("pop_dynamic_layer_stack")())
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exception: object) -> None:
        while self._aside:
            _functorch("push_dynamic_layer_stack")(self._aside.pop())


def outside_transforms() -> AbstractContextManager[None]:
    """A block inside which no transform is in force: what is computed there are ordinary tensors, which can be kept."""
    return _WithoutTransforms() if transforms_in_force() else nullcontext()


def _functorch(name: str) -> Any:
    return internal(torch._C._functorch, name, "look at values inside of vmap")


def batched_by_kernels(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` over dimension 0 of its arguments, by the vmap that autograd itself uses.

    That vmap lets a function run forward-mode AD inside of it (`make_dual`), which `torch.func.vmap` does not.
    """
    transformed: Callable[..., Any] = internal(_vmap_internals, "_vmap", "run forward-mode AD under vmap")(function)
    return transformed
