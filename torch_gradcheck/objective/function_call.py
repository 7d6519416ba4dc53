"""A function and its arguments, some of them on trial: called again with other tensors in their places."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.autograd import Function

from torch_gradcheck.borrowing.builtin_content import is_a
from torch_gradcheck.objective.nested import PLAIN, rebuilt, tensors_in
from torch_gradcheck.objective.variables import Variable, variables_in
from torch_gradcheck.reporting.facts import Role


@dataclass(frozen=True)
class FunctionCall:
    """`function(*args, **kwargs)`; made by `function_call`.

    Attributes:
        function: a function of tensors, `MyFunction.apply`, a custom operator or a module.
        args, kwargs: the arguments, their tensors copies of the caller's. Those on trial require a gradient.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @cached_property
    def variables(self) -> list[Variable]:
        """The tensors on trial among the arguments, named after their places."""
        found = [each for name, value in self._named for each in variables_in(name, value, Role.ARGUMENT)]
        return list({id(each.tensor): each for each in reversed(found)}.values())[::-1]

    def called(self, tensors: Sequence[torch.Tensor]) -> Any:
        """What the function returns with these tensors in the places of those on trial, in the order of `variables`.

        Other tensors among the arguments are the caller's own objects: inside of a loan their copies.
        """
        places = {id(variable.tensor): tensor for variable, tensor in zip(self.variables, tensors, strict=True)}
        if self._is_flat:  # as most calls are; to look into nested ones takes longer than a small function
            args, kwargs = [places.get(id(each), each) for each in self.args], dict(self.kwargs)
            kwargs.update({name: places[id(each)] for name, each in kwargs.items() if id(each) in places})
        else:
            args, kwargs = rebuilt((self.args, dict(self.kwargs)), lambda tensor: places.get(id(tensor), tensor))
        return self.function(*args, **kwargs)

    @cached_property
    def _is_flat(self) -> bool:
        """Whether every argument is a tensor, or a value that holds none."""
        return all(type(each) in PLAIN or is_a(each, torch.Tensor) for each in (*self.args, *self.kwargs.values()))

    @property
    def _named(self) -> list[tuple[str, Any]]:
        names = argument_names(self.function)
        names += [f"args[{position}]" for position in range(len(names), len(self.args))]
        return [*zip(names, self.args, strict=False), *self.kwargs.items()]


def function_call(function: Callable[..., Any], inputs: Sequence[Any] | Mapping[str, Any]) -> FunctionCall:
    """The call of a function with copies of its arguments.

    On trial are the tensors that require a gradient or, where none does, all of floating point or complex numbers.

    Args:
        function: what is called.
        inputs: the positional arguments, or a mapping of keyword arguments.
    """
    inexact = [tensor for _, tensor in tensors_in(inputs) if tensor.is_floating_point() or tensor.is_complex()]
    on_trial = {id(each) for each in [each for each in inexact if each.requires_grad] or inexact}
    copies: dict[int, torch.Tensor] = {}

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone().requires_grad_(id(tensor) in on_trial)
        return copies[id(tensor)]

    args, kwargs = ((), inputs) if is_a(inputs, Mapping) else (tuple(inputs), {})
    return FunctionCall(function, rebuilt(args, copied), rebuilt(kwargs, copied))


def outputs_of(result: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors in what a function returned, with names: `output`, or `output[1]`, `output['loss']` in a nest."""
    return [(f"output{path}", tensor) for path, tensor in tensors_in(result)]


def argument_names(function: Callable[..., Any]) -> list[str]:
    """The names of the positional arguments, of `forward` without `ctx` for a Function; none where they are unknown."""
    owner: Any = getattr(function, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, Function):
        has_ctx = owner.setup_context is Function.setup_context
        return _names(owner.forward)[has_ctx:]
    return _names(function.forward if isinstance(function, nn.Module) else function)


def _names(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [each.name for each in parameters if each.kind in positional]
