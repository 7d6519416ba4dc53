"""A module's errors put into a run of a model: added to what one call puts out, and to the gradients that leave it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from torch_gradcheck.diagnosis.culprit.argument_copies import tensors_of
from torch_gradcheck.objective.function_outputs import outputs_of
from torch_gradcheck.objective.nested import rebuilt
from torch_gradcheck.torch_internals.modules import Calls, current_calls, set_calls


class InjectedErrors:
    """Inside the block, one call of a module has these errors.

    A class and not a generator, as `Loan` is, which puts back the patch of `nn.Module.__call__` if this is cut off.

    Args:
        module: whose call.
        number: which of its calls, from 0 on.
        of_outputs: what is added to an output, by its name; each of the output's shape.
        of_inputs: what is added to the gradient that leaves the call for an input, by its place among the tensors that
            the call is given; each of the input's shape.
        instead: what an output is in place of that, by its name, where it is not NaN: nothing makes -inf a finite
            number by being added.
    """

    def __init__(
        self,
        module: nn.Module,
        number: int,
        of_outputs: Mapping[str, torch.Tensor],
        of_inputs: Mapping[int, torch.Tensor],
        instead: Mapping[str, torch.Tensor],
    ) -> None:
        self._module, self._number = module, number
        self._of_outputs, self._of_inputs, self._instead = of_outputs, of_inputs, instead
        self._before: Calls | None = None
        self._seen = 0

    def __enter__(self) -> None:
        calls = self._before = current_calls()
        set_calls(Calls(lambda module, *args, **kwargs: self._called(calls, module, args, kwargs), calls.function))

    def __exit__(self, *exception: object) -> None:
        assert self._before is not None
        set_calls(self._before)

    def _called(self, calls: Calls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if module is self._module:
            self._seen += 1
            if self._seen == self._number + 1:
                return self._with_errors(calls, args, kwargs)
        return calls.module(module, *args, **kwargs)

    def _with_errors(self, calls: Calls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = tensors_of((args, kwargs))
        tapped = {id(given[k]): _tapped(given[k], error) for k, error in self._of_inputs.items()}
        args, kwargs = rebuilt((args, kwargs), lambda each: tapped.get(id(each), each))
        result = calls.module(self._module, *args, **kwargs)
        wrong = {id(y): self._wrong(name, y) for name, y in outputs_of(result) if name in self._of_outputs}
        return rebuilt(result, lambda y: wrong.get(id(y), y))

    def _wrong(self, name: str, y: torch.Tensor) -> torch.Tensor:
        moved = y + self._of_outputs[name].to(y)
        if name not in self._instead:
            return moved
        instead = self._instead[name].to(y)
        return torch.where(instead.isnan(), moved, instead)


def _tapped(x: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor whose gradient leaves with the error added."""
    copy = x.clone()
    if copy.requires_grad:
        copy.register_hook(lambda gradient: gradient + error.to(gradient))
    return copy
