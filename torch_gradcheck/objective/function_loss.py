"""J of a function: Σ ⟨v, y⟩ over its differentiable outputs y, with random v that are signed and not uniform."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from torch_gradcheck.borrowing.captures import captures_of
from torch_gradcheck.borrowing.tensor_copies import is_freed
from torch_gradcheck.errors import InvalidRequestError, NonFiniteLossError
from torch_gradcheck.objective.function_call import FunctionCall, module_of
from torch_gradcheck.objective.function_outputs import Cotangents, bent, inner, outputs_of, root_mean_square
from torch_gradcheck.objective.given import Given
from torch_gradcheck.objective.loss import Compute
from torch_gradcheck.objective.signatures import callable_name
from torch_gradcheck.objective.variables import Variable, captured_in, objects_of
from torch_gradcheck.precision.dtypes import is_inexact
from torch_gradcheck.reporting.words import LossWords, listed
from torch_gradcheck.torch_internals.autograd import writes_to_a_leaf


class FunctionModule(nn.Module):
    """Stands for a plain function where a check asks for a model: it has no parameters, buffers or modules."""


def model_of(function: Any) -> nn.Module:
    """The module that is called, or one that stands for a function that is none."""
    module = module_of(function)
    return FunctionModule() if module is None else module


class WrittenArgumentsError(Exception):
    """The function writes to arguments that are on trial: it has to get copies that are no leaves."""


@dataclass(eq=False)
class FunctionLoss:
    """Σ ⟨v, y⟩ of a function called with its arguments.

    Attributes:
        call: the function and its arguments.
        seed: of v.
        is_bent: y is bent, see `bent`, so that what a backward is given depends on θ, and a double backward
            has to go through it.
        skips_infinities: entries that are infinite at θ, as of a mask of −∞, are left out of J; else J is not finite.
        in_j: the names of the outputs that J is made of, found by its first evaluation: those with a graph or, where
            none has one, all of floating point or complex numbers.
        without_graph: the names of the outputs that are left out of J, since others have a graph and they have none.
        not_finite: the outputs that J is made of and that hold NaN or infinity, as "2 of 12 entries of output[1]".
    """

    call: FunctionCall
    seed: int
    is_bent: bool = False
    skips_infinities: bool = False
    in_j: tuple[str, ...] = field(default=(), init=False)
    without_graph: tuple[str, ...] = field(default=(), init=False)
    not_finite: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self._cotangents = Cotangents(self.seed)
        self._sizes: dict[int, torch.Tensor] = {}
        self._first_values: list[torch.Tensor] = []
        self._infinite: dict[str, torch.Tensor] = {}

    @property
    def holders(self) -> list[Any]:
        """The function and its arguments."""
        return [self.call.function, self.call.args, dict(self.call.kwargs), *objects_of(self.variables)]

    @cached_property
    def variables(self) -> list[Variable]:
        """The arguments on trial."""
        return self.call.variables

    @cached_property
    def words(self) -> LossWords:
        """The function by its name; a Function in it by its own."""
        return LossWords.of_function(callable_name(self.call.function))

    @property
    def given(self) -> Given:
        """The function, and its arguments by name."""
        return Given("function", self.call.function, self.call.named(self.call.args, self.call.kwargs))

    @property
    def notes(self) -> list[str]:
        """The notes on outputs that are not in J, and on what is not on trial though it could have a gradient."""
        notes = []
        if self.without_graph:
            has = "has" if len(self.without_graph) == 1 else "have"
            notes.append(
                f"{listed(self.without_graph)} {has} no graph (marked non-differentiable, detached, or computed of "
                "nothing that requires a gradient): left out of J"
            )
        captured = _captured(self.call.function)
        if captured:
            notes.append(
                f"captured by the function and not on trial, though a gradient is required: {listed(captured)}; give "
                "it as an argument, or check the module itself"
            )
        return notes

    def explained(self, error: NonFiniteLossError) -> NonFiniteLossError:
        """The error, with the outputs that are at fault."""
        given = [bool(torch.isfinite(each.tensor).all()) for each in self.variables]
        if not self.not_finite or not all(given):  # then the error tells of the argument
            return error
        which = f"Not finite are {listed(self.not_finite)}: a function that masks with −∞ may return the others alone."
        return NonFiniteLossError(f"{error} {which}", module=error.module)

    def on_copies(self) -> FunctionLoss:
        """The same with a function that gets copies of its arguments."""
        return FunctionLoss(replace(self.call, writes=True), self.seed, self.is_bent, self.skips_infinities)

    def in_any_memory(self) -> FunctionLoss:
        """The same with a function that gets its arguments in whatever memory layout a caller chooses."""
        call = replace(self.call, memory=None)
        return FunctionLoss(call, self.seed, self.is_bent, self.skips_infinities)

    def at(self, dtype: torch.dtype | None) -> Compute:
        """See `Loss.at`; the arguments are lent in `dtype`."""
        self._cotangents = Cotangents(self.seed, dtype)
        return self._value

    def terms(self) -> dict[str, torch.Tensor]:
        """⟨v, y⟩ of every output that J is made of, by name; J is their sum. Only inside of an evaluation.

        Raises:
            InvalidRequestError: the function returns no tensor that could have a gradient.
            WrittenArgumentsError: it writes to arguments on trial, and has got the very leaves.
        """
        first = not self.in_j
        outputs = outputs_of(self._first_call() if first else self.call.called(objects_of(self.variables)))
        if first:
            self._choose(dict(outputs))
        return {
            name: inner(self._cotangents.of(position, y), self._bent(position, y))
            for position, (name, y) in enumerate(map(self._finite, outputs))
            if name in self.in_j
        }

    def _finite(self, output: tuple[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
        """The output with 0, and no graph, in the entries that are left out of J."""
        name, y = output
        return name, y.masked_fill(self._infinite[name], 0) if name in self._infinite else y

    def _bent(self, position: int, output: torch.Tensor) -> torch.Tensor:
        """The output, bent by its size in the first evaluation, at θ, where it is to be."""
        if not self.is_bent:
            return output
        if position not in self._sizes:
            self._sizes[position] = root_mean_square(output.detach())
        return bent(output, self._sizes[position])

    def cotangent(self, position: int, output: torch.Tensor) -> torch.Tensor:
        """v of the output at this position among all tensors that the function returns, in new memory."""
        return self._cotangents.of(position, output).clone()

    def _value(self) -> torch.Tensor:
        first, *others = self.terms().values()
        return sum(others, first)

    def _first_call(self) -> Any:
        """The result of the first call, which shows whether the function writes to its arguments."""
        leaves = objects_of(self.variables)
        self._first_values = [leaf.detach().clone() for leaf in leaves]
        try:
            result = self.call.called(leaves)
        except RuntimeError as error:
            if self.call.writes or not writes_to_a_leaf(error):
                raise
            raise WrittenArgumentsError from error
        self.refuse_written()
        return result

    def refuse_written(self) -> None:
        """Raises WrittenArgumentsError where what was run at θ has written to arguments on trial."""
        if not self.call.writes and any(map(_differ, self._first_values, objects_of(self.variables))):
            raise WrittenArgumentsError

    def _choose(self, outputs: dict[str, torch.Tensor]) -> None:
        inexact = [name for name, y in outputs.items() if is_inexact(y)]
        if not inexact:
            raise InvalidRequestError(
                f"{callable_name(self.call.function)} returns no tensor of floating point or complex numbers"
                f"{_of_what(outputs)}: it has no gradient to check. Have it return what it computes, in tuples, lists, "
                "mappings or dataclasses; what it writes to an argument, too."
            )
        with_graph = [name for name in inexact if outputs[name].requires_grad]
        self.in_j = tuple(with_graph or inexact)
        self.without_graph = tuple(name for name in inexact if name not in self.in_j)
        if self.skips_infinities:
            masks = {name: torch.isinf(outputs[name].detach()) for name in self.in_j}
            self._infinite = {name: mask for name, mask in masks.items() if mask.any()}
        infinite = {name: int((~torch.isfinite(outputs[name])).sum()) for name in self.in_j}
        self.not_finite = tuple(
            f"{count} of {outputs[name].numel()} entries of {name}" for name, count in infinite.items() if count
        )


def _captured(function: Any) -> list[str]:
    """The names of tensors that a function captures and that require a gradient, and of modules that have such."""
    found = captures_of(function)
    own = {id(each) for each in model_of(function).modules()}
    trained = {type(each).__name__: key for key, each in found.modules.items() if key not in own and _is_trained(each)}
    return [*[each.name for each in captured_in(found)], *[f"the parameters of {kind}" for kind in trained]]


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _differ(before: torch.Tensor, now: torch.Tensor) -> bool:
    """Whether a tensor has been written to; also past its version counter, as `.data` does."""
    return is_freed(now) or not torch.equal(torch.nan_to_num(before), torch.nan_to_num(now.detach()))


def _of_what(outputs: dict[str, torch.Tensor]) -> str:
    return f" ({listed([f'{name} is {y.dtype}' for name, y in outputs.items()])})" if outputs else ""
