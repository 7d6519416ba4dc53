"""A function and its arguments, some of them on trial: called again with other tensors in their places."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from torch_gradcheck.borrowing.builtin_content import is_a
from torch_gradcheck.borrowing.layout_copies import strided_copy
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.argument_memory import ArgumentMemory
from torch_gradcheck.objective.nested import PLAIN, rebuilt, tensors_in
from torch_gradcheck.objective.refused_functions import about_context
from torch_gradcheck.objective.signatures import (
    argument_names,
    callable_name,
    counted,
    function_applied_by,
    misfit,
    positional,
)
from torch_gradcheck.objective.sparse_arguments import SparseFromValues, is_sparse, values_of
from torch_gradcheck.objective.variables import Variable, can_be_perturbed, distinct, variables_in
from torch_gradcheck.precision.dtypes import is_inexact
from torch_gradcheck.torch_internals.function_calls import Application


@dataclass(frozen=True)
class FunctionCall:
    """`function(*args, **kwargs)`; made by `function_call`.

    Attributes:
        function: a function of tensors, `MyFunction.apply`, a custom operator or a module.
        args, kwargs: the arguments, their tensors copies of the caller's. Those on trial require a gradient.
        patterns: of sparse tensors on trial by the id of what stands for them in the arguments: the values that they
            specify, of which the function gets a sparse tensor again.
        writes: the function writes to arguments on trial, and gets copies of them that are no leaves: autograd allows
            no write to a leaf, and what an evaluation writes to θ would stay for the next one. Other functions get the
            leaves, which a Function may tell from other tensors, and keep.
        memory: the caller's own tensors, in whose memory layout the function gets its arguments, copied anew for every
            call; None: those that are not on trial are the same tensors in all calls.
        named_after: the function whose argument names they have, where that is another one.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    writes: bool = False
    patterns: Mapping[int, torch.Tensor] = field(default_factory=dict)
    memory: ArgumentMemory | None = None
    named_after: Callable[..., Any] | None = None

    @cached_property
    def variables(self) -> list[Variable]:
        """The tensors on trial among the arguments, named after their places; one at several has aliases."""
        return distinct([each for name, value in self._named for each in variables_in(name, value)])

    def called(self, tensors: Sequence[torch.Tensor]) -> Any:
        """What the function returns with these tensors in the places of those on trial, in the order of `variables`.

        Other tensors among the arguments are the caller's own objects: inside of a loan their copies.

        Raises:
            InvalidRequestError: the arguments do not fit the function's signature.
        """
        return self.called_on(*self.given(tensors))

    def given(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of `called`: in containers of their own, which the function may write to."""
        return self._with([strided_copy(tensor) for tensor in tensors] if self.writes else tensors)

    def called_on(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the function returns for arguments that `given` has made; raises what `called` does."""
        try:
            return self.function(*args, **kwargs)
        except (TypeError, RuntimeError) as error:  # operators raise the latter where arguments are missing
            why = misfit(self.function, args, kwargs) or _refused_by_builtin(error)
            if not why:
                raise
            applied = function_applied_by(self.function)
            of_context = "" if applied is None else about_context(Application(applied, args, kwargs))
            raise InvalidRequestError(
                f"inputs do not fit {callable_name(self.function)}: it is called with {counted(args, kwargs)}, and "
                f"{why}.{of_context and f' Look at its forward: {of_context}.'} inputs is a tuple "
                "of its positional arguments or a mapping of its keyword arguments."
            ) from error

    def _with(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with these tensors in the places of those on trial."""
        places = {id(each.tensor): self._given(each, x) for each, x in zip(self.variables, tensors, strict=True)}
        if self.memory is not None:
            places = self.memory.fresh(places)
        if not self._is_flat:
            return rebuilt((self.args, dict(self.kwargs)), lambda tensor: places.get(id(tensor), tensor))  # type: ignore[no-any-return]
        kwargs = {name: places.get(id(each), each) for name, each in self.kwargs.items()}
        return tuple([places.get(id(each), each) for each in self.args]), kwargs

    def _given(self, variable: Variable, tensor: torch.Tensor) -> torch.Tensor:
        """What the function gets for a variable in whose place this tensor is."""
        pattern = self.patterns.get(id(variable.tensor))
        return tensor if pattern is None else SparseFromValues.apply(tensor, pattern)  # type: ignore[no-untyped-call]

    @cached_property
    def _is_flat(self) -> bool:
        """Whether every argument is a tensor, or a value that holds none: to look into others takes longer."""
        return all(type(each) in PLAIN or is_a(each, torch.Tensor) for each in (*self.args, *self.kwargs.values()))

    @property
    def others(self) -> list[tuple[str, torch.Tensor]]:
        """The tensors among the arguments that are not on trial, each once, named after the first place."""
        on_trial = {id(variable.tensor) for variable in self.variables}
        found = {id(each): (name, each) for name, each in reversed(self.arguments([v.tensor for v in self.variables]))}
        return [pair for key, pair in reversed(found.items()) if key not in on_trial]

    def with_other(self, tensor: torch.Tensor, other: torch.Tensor) -> FunctionCall:
        """The call with another tensor in the place of one that is not on trial."""
        replaced = rebuilt((self.args, dict(self.kwargs)), lambda each: other if each is tensor else each)
        return replace(self, args=replaced[0], kwargs=replaced[1])

    def arguments(self, tensors: Sequence[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
        """All tensors among the arguments, named after their places, these in the places of those on trial."""
        places = {id(variable.tensor): tensor for variable, tensor in zip(self.variables, tensors, strict=True)}
        found = [(name + path, each) for name, value in self._named for path, each in tensors_in(value)]
        return [(name, places.get(id(each), each)) for name, each in found]

    @property
    def _named(self) -> list[tuple[str, Any]]:
        return self.named(self.args, self.kwargs)

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Arguments in the places of this call's, each with its name."""
        names = [*argument_names(self.named_after or self.function, len(args)), *kwargs]
        return list(zip(names, [*args, *kwargs.values()], strict=True))


def function_call(
    function: Callable[..., Any], inputs: Sequence[Any] | Mapping[str, Any], *, in_its_memory: bool = False
) -> FunctionCall:
    """The call of a function with copies of its arguments.

    On trial are the tensors that require a gradient or, where none does, all of floating point or complex numbers; of
    a sparse one the values that it specifies.

    Args:
        function: what is called.
        inputs: the positional arguments, or a mapping of keyword arguments.
        in_its_memory: the function gets every argument in the memory layout of the caller's own, see `ArgumentMemory`.

    Raises:
        InvalidRequestError: `inputs` is neither, or nothing in it, and no parameter, can be on trial.
    """
    given, named = _arguments(function, inputs)
    inexact = [tensor for _, tensor in tensors_in((given, named), objects=True) if is_inexact(tensor)]
    on_trial = {id(each) for each in [each for each in inexact if each.requires_grad] or inexact}
    if not on_trial and module_of(function) is None:
        raise InvalidRequestError(
            f"inputs holds no tensor of floating point or complex numbers{_found_instead(given, named)}: "
            f"{callable_name(function)} has no gradient to check."
        )
    copies: dict[int, torch.Tensor] = {}
    patterns: dict[int, torch.Tensor] = {}
    originals: dict[int, torch.Tensor] = {}

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in copies:
            asked = id(tensor) in on_trial
            moves = asked and is_sparse(tensor)
            numbers = values_of(tensor) if moves else _perturbable(tensor) if asked else tensor
            copy = copies[id(tensor)] = numbers.detach().clone().requires_grad_(asked)
            patterns.update({id(copy): tensor.detach()} if moves else {})
            originals.update({} if moves else {id(copy): tensor.detach()})
        return copies[id(tensor)]

    args, kwargs = rebuilt(given, copied), rebuilt(named, copied)
    return FunctionCall(function, args, kwargs, False, patterns, ArgumentMemory(originals) if in_its_memory else None)


def module_of(function: Any) -> nn.Module | None:
    """The module that is called: itself, or by one of its methods, bound arguments and wrappers aside; else None."""
    function = inspect.unwrap(function)
    if isinstance(function, functools.partial):
        return module_of(function.func)
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def _arguments(function: Callable[..., Any], inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The positional and the keyword arguments; `apply` of a Function takes positional ones only."""
    if is_a(inputs, Mapping):
        if [name for name in inputs if not isinstance(name, str)]:
            raise InvalidRequestError(
                f"inputs has keys that are no names of arguments: {list(inputs)}. A mapping holds keyword arguments."
            )
        return positional(function, inputs)
    if is_a(inputs, tuple, list) and not is_a(inputs, nn.utils.rnn.PackedSequence):
        return tuple(inputs), {}
    raise InvalidRequestError(
        "inputs must be a tuple of the function's positional arguments or a mapping of its keyword arguments, got a "
        f"{type(inputs).__name__}: for a single argument x write (x,)."
    )


def _perturbable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor; raises InvalidRequestError where its numbers cannot be moved one by one."""
    if can_be_perturbed(tensor):
        return tensor
    kind = "nested" if tensor.is_nested else "meta" if tensor.is_meta else str(tensor.layout).rpartition(".")[2]
    what = {"strided": f"of the class {type(tensor).__name__}", "meta": "on the meta device"}.get(kind, kind)
    raise InvalidRequestError(
        f"inputs holds a tensor that cannot be perturbed, {what}: give the ordinary tensors that it is made of, and "
        "have the function put it together."
    )


def _found_instead(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Words on what the arguments are, as " (found int64 tensor, float)"; "" where there are none."""
    kinds = dict.fromkeys([_kind(each) for each in [*args, *kwargs.values()]])
    advice = "; torch.from_numpy makes tensors of arrays" if "ndarray" in kinds else ""
    return f" (found {', '.join(kinds)}{advice})" if kinds else ""


def _kind(value: Any) -> str:
    dtype = str(value.dtype).rpartition(".")[2] if isinstance(value, torch.Tensor) else ""
    return f"{dtype} tensor" if dtype else type(value).__name__


def _refused_by_builtin(error: Exception) -> str:
    """The words of a builtin function on arguments that it does not take; "" for errors of Python code."""
    trace = error.__traceback__
    is_refusal = isinstance(error, TypeError) and trace is not None and trace.tb_next is None
    return f"torch says: {error}" if is_refusal else ""
