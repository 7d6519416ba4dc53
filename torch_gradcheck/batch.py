"""The batch as the check sees it: copied once into its precision, whole again for every evaluation of J."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.precision import in_precision
from torch_gradcheck.structure import rebuilt

Loss = Callable[[], Any]


class BatchCopy:
    """The caller's batch with every tensor copied: floating ones into `dtype`, on the device they are on.

    `dtype` None leaves all in their own. A tensor that occurs twice is one tensor in the copy too. An evaluation may
    write to its batch; `fresh` hands out the first values again.
    """

    def __init__(self, batch: Any, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        self._copies: dict[int, torch.Tensor] = {}
        self._kept: list[torch.Tensor] = []  # the originals, so that no id is used twice
        self._structure = rebuilt(batch, self._copied)
        self._first = {id(copy): copy.detach().clone() for copy in self._copies.values()}
        self._versions = {id(copy): copy._version for copy in self._copies.values()}

    def fresh(self) -> Any:
        """The batch in new containers, its tensors holding their first values."""
        return rebuilt(self._structure, self._rewound)

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_meta:
            raise InvalidRequestError("batch holds a tensor on the meta device, which has no numbers to compute with.")
        if id(tensor) not in self._copies:
            self._kept.append(tensor)
            copy = tensor.detach().to(in_precision(tensor.dtype, self._dtype), copy=True)
            self._copies[id(tensor)] = copy.requires_grad_(tensor.requires_grad)
        return self._copies[id(tensor)]

    def _rewound(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor._version != self._versions[id(tensor)] or tensor.grad is not None:
            tensor.grad = None
            tensor.data.copy_(self._first[id(tensor)])
            self._versions[id(tensor)] = tensor._version
        return tensor


def batch_loss(model: nn.Module, loss_fn: Callable[..., Any], batch: Any, dtype: torch.dtype | None) -> Loss:
    """J as a function of nothing: the model called on the batch as API.md's table says, then `loss_fn`.

    A tuple or list is `(inputs, *targets)`; a mapping is the model's keyword arguments; anything else its one input.
    Inputs that are themselves a tuple or list are positional arguments, a mapping keyword arguments.
    """
    if isinstance(batch, tuple | list) and not batch and not hasattr(batch, "_fields"):
        raise InvalidRequestError(
            "batch is empty; give (inputs, *targets), a mapping of keyword arguments, or a tensor."
        )
    copy = BatchCopy(batch, dtype)

    def loss() -> Any:
        fresh = copy.fresh()
        inputs, targets = (fresh[0], fresh[1:]) if _is_sequence(fresh) else (fresh, ())
        return _fitting("loss_fn", loss_fn, (_called(model, inputs), *targets), {})

    return loss


def _called(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        if not all(isinstance(name, str) for name in inputs):
            raise InvalidRequestError(f"batch has keys that are no names of arguments: {list(inputs)}.")
        return _fitting("model", model, (), inputs)
    return _fitting("model", model, tuple(inputs) if _is_sequence(inputs) else (inputs,), {})


def _fitting(name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What the call gives; a call that its signature has no place for is the batch's fault."""
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        misfit = _misfit(function.forward if isinstance(function, nn.Module) else function, args, kwargs)
        if not misfit:
            raise
        raise InvalidRequestError(
            f"batch does not fit {name}: it is called with {_counted(args, kwargs)}, and {misfit}. A batch is "
            "(inputs, *targets); inputs that are a tuple or list are positional arguments of the model, a mapping its "
            "keyword arguments."
        ) from error


def _counted(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """How many arguments of which kind."""
    keywords = f" and the keywords {list(kwargs)}" if kwargs else ""
    return f"{len(args)} positional argument{'' if len(args) == 1 else 's'}{keywords}"


def _misfit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Why the arguments do not fit the signature of a function; "" where they do, or it has none to be read."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return f"has the signature {signature}: {error}"
    return ""


def _is_sequence(value: Any) -> bool:
    """Whether `value` lists several things; a PackedSequence is a tuple to Python but one input to a model."""
    return isinstance(value, tuple | list) and not isinstance(value, nn.utils.rnn.PackedSequence)
