"""What torch does not take of the backward of a Function, told with its line, the argument, what it got and wants.

Torch names none of these: it looks at gradients when the backward has returned. So J and its backward are run once
more, and the last backward that has run is the one that torch speaks of. What a backward raises itself comes through as
it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.autograd import Function

from torch_gradcheck.errors import GradcheckError, MisfitError
from torch_gradcheck.gradients.function_backwards import FunctionBackwards
from torch_gradcheck.gradients.watched_backwards import CalledModules
from torch_gradcheck.objective.given import of_tensor, of_value
from torch_gradcheck.objective.module_hooks import forward_hooks
from torch_gradcheck.objective.refusals import raise_any, refused_backward
from torch_gradcheck.objective.refused_places import first_line, named_module
from torch_gradcheck.objective.signatures import argument_names, signature_of
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.autograd import backward_of, function_of, input_forms, number_of
from torch_gradcheck.torch_internals.code_lines import at_line_of
from torch_gradcheck.torch_internals.custom_ops import custom_op_of
from torch_gradcheck.torch_internals.modules import module_at
from torch_gradcheck.torch_internals.refused_gradients import (
    is_of_calling_backward,
    is_of_returned_gradients,
    refused_position,
)

T = TypeVar("T")

IN_ORDER = (
    "Return as a tuple what forward's arguments get, in their order: a tensor, or None for one that needs no gradient."
)

MOST_ARGUMENTS = 6
"""Names of arguments that a refusal repeats."""


def told(run: Callable[[], T], model: nn.Module) -> T:
    """What `run` returns; raises a `MisfitError` where torch cannot use the backward of a Function in it.

    Args:
        run: a run of J and its backward, which is repeated where torch has refused that.
        model: the lent model.
    """
    try:
        return run()
    except Exception as error:
        raise_any(_refused(error, run, model), error)
        raise


def _refused(error: Exception, again: Callable[[], object], model: nn.Module) -> MisfitError | None:
    has_returned = is_of_returned_gradients(error)
    if isinstance(error, GradcheckError) or not (has_returned or is_of_calling_backward(error)):
        return refused_backward(error)
    last = _LastBackward(model)
    try:
        with last:
            again()
    except Exception as second:
        if type(second) is type(error) and str(second) == str(error) and last.is_known(has_returned):
            return _of_returned(error, last) if has_returned else _of_called(error, last)
    return None


class _LastBackward:
    """The backward of a Function of the user's that has run last inside the block.

    Attributes:
        node: its node in the graph; None where none has run.
        function: the Function.
        given: how many gradients it was given.
        returned: what it has returned; None where it has not.
    """

    def __init__(self, model: nn.Module) -> None:
        self.node: Any = None
        self.function: type[Function] = Function
        self.given = 0
        self.returned: tuple[Any, ...] | None = None
        self._model, self._modules = model, CalledModules()
        self._hooks = forward_hooks(model, stack=self._modules)
        self._backwards = FunctionBackwards(self._looked_at)

    def __enter__(self) -> None:
        self._backwards.__enter__()
        self._hooks.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(None, None, None)
        self._backwards.__exit__(*exception)

    def _looked_at(
        self, node: Any, function: type[Function], gradients: tuple[Any, ...], run: Callable[[], Any]
    ) -> Any:
        self.node, self.function, self.given, self.returned = node, function, len(gradients), None
        returned = run()
        self.node, self.function = node, function  # it may have run others
        self.returned = returned if isinstance(returned, tuple) else (returned,)
        return returned

    def is_known(self, has_returned: bool) -> bool:
        """Whether it is a Function as the user wrote it, and has returned, or not, as torch says."""
        is_written = self.node is not None and function_of(self.node) is self.function
        return is_written and (self.returned is not None) == has_returned

    @property
    def name(self) -> str:
        """The backward with its line and the module in which its Function was called."""
        operator, module = custom_op_of(self.function), self._modules.of_node(number_of(self.node))
        called = f"{self.function.__name__}.backward" if operator is None else f"the backward of {operator.name}"
        inside = "" if module is None else f", of {named_module(module, module_at(self._model, module))},"
        return f"{called}{at_line_of(backward_of(self.function))}{inside}"

    @property
    def count(self) -> int | None:
        """Where in what was returned the last gradient of the user's is: of an operator torch adds some; None: last."""
        added = len(self.node.needs_input_grad) - len(self.arguments)
        return -added if custom_op_of(self.function) is not None and added > 0 else None

    @property
    def arguments(self) -> list[str]:
        """The names of the arguments that the Function was called with."""
        count, operator = len(self.node.needs_input_grad), custom_op_of(self.function)
        return argument_names(self.function.apply, count) if operator is None else list(operator.arguments)


def _of_returned(error: Exception, last: _LastBackward) -> MisfitError | None:
    """The words on gradients that torch does not take; None where they are right, and a hook has changed them."""
    assert last.returned is not None
    position = refused_position(error, last.node, last.returned)
    names, says = last.arguments, f"(torch says: {first_line(error)})."
    if position is None:
        counted = f"{_counted(last.returned[: last.count])} and forward takes {_takes(names)}"
        return MisfitError(f"{last.name} returned {counted} {says} {IN_ORDER}")
    gradient, form = last.returned[position], input_forms(last.node).get(position)
    name = names[position] if position < len(names) else f"argument {position}"
    if form is None or not isinstance(gradient, torch.Tensor):
        of_none = ", which needs none" if form is None else ""
        return MisfitError(
            f"{last.name} returned {of_value(gradient)} as the gradient of {name}{of_none} {says} {IN_ORDER}"
        )
    if (tuple(gradient.shape), gradient.device) == (form.shape, form.device):
        return None
    where = "" if gradient.device == form.device else f" on {form.device}"
    return MisfitError(
        f"{last.name} returned for {name} a gradient of shape {of_tensor(gradient)}, and {name} has shape "
        f"{form.shape}{where} {says} Return for each argument a gradient of its own shape, on its device."
    )


def _counted(returned: tuple[Any, ...]) -> str:
    """What a backward has returned as a whole, as "2 gradients", "None", "a list"."""
    if len(returned) == 1 and not isinstance(returned[0], torch.Tensor):
        return f"{of_value(returned[0])}, which counts as one gradient,"
    return f"{len(returned)} gradient{'' if len(returned) == 1 else 's'},"


def _takes(names: Sequence[str]) -> str:
    """The arguments of a forward, as "2 arguments (x, w)"."""
    return f"{len(names)} argument{'' if len(names) == 1 else 's'} ({listed(names, MOST_ARGUMENTS)})"


def _of_called(error: Exception, last: _LastBackward) -> MisfitError:
    """The words on a backward that torch cannot call."""
    says = f"(torch says: {first_line(error)})."
    gradients = "1 gradient" if last.given == 1 else f"{last.given} gradients"
    return MisfitError(
        f"{last.name} has the signature {_signature(backward_of(last.function))}, and torch calls it with ctx and "
        f"{gradients}, one for each output of forward {says} Have it take these."
    )


def _signature(backward: Callable[..., Any]) -> str:
    signature = signature_of(backward)
    return "(unknown)" if signature is None else str(signature)
