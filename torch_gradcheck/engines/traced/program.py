"""The tape as a program: values at θ, and for each parameter the operations that depend on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.chunks import Footprint
from torch_gradcheck.engines.traced.recording.recorder import record
from torch_gradcheck.engines.traced.recording.tape import Guard, Operation, Ref, Tape, substitute
from torch_gradcheck.engines.traced.rules import convolutions, indexing, normalizations, products, reductions, views
from torch_gradcheck.engines.traced.rules.by_vmap import by_vmap
from torch_gradcheck.engines.traced.rules.pointwise import (
    pointwise,
    rule_of,
    same,
    scaled,
    sum_or_difference,
    tanh,
)
from torch_gradcheck.engines.traced.rules.registry import Rule
from torch_gradcheck.engines.traced.threads import OnThreads
from torch_gradcheck.engines.traced.untraceable import Strayed, Untraceable
from torch_gradcheck.torch_internals.devices import is_out_of_memory
from torch_gradcheck.torch_internals.dispatch import modes_disabled
from torch_gradcheck.torch_internals.operations import OpOverload, flatten, is_view

FRESH = frozenset(
    {scaled, pointwise, products.product, products.product_and_sum, reductions.softmax, sum_or_difference, tanh}
)
"""Rules whose results share memory with nothing, or are an operand's very tensor."""

PASSING = frozenset({same, views.permute, views.reshape, views.squeeze, views.unsqueeze})
"""Rules whose result is a view of all of the operand's memory, or a copy."""

RULE_FILES = (convolutions, indexing, normalizations, products, reductions, views)
"""Imported for the rules they register."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An operation, with all that is the same for every parameter.

    Attributes:
        operation: the operation.
        rule: evaluates it for many perturbations.
        inputs: numbers of the values that it reads.
        args: its positional arguments at θ.
        places: positions of tensors among its arguments, with the numbers of these.
        lists: positions of lists among its arguments, with these as the tape has them.
        bases: its results at θ.
        fresh: whether its results have memory of their own.
        passing: whether its result is its operand's memory, or a copy of it.
    """

    operation: Operation
    rule: Rule
    inputs: tuple[int, ...]
    args: tuple[Any, ...]
    places: tuple[tuple[int, int], ...]
    lists: tuple[tuple[int, list[Any]], ...]
    bases: list[Tensor]
    fresh: bool
    passing: bool

    def arguments(self, moved: Mapping[int, Any], values: Mapping[int, Any]) -> list[Any]:
        """Its positional arguments with some values moved, and all others as they are at θ."""
        args = list(self.args)
        for position, number in self.places:
            if number in moved:
                args[position] = moved[number]
        for position, tree in self.lists:
            args[position] = substitute(tree, lambda number: moved[number] if number in moved else values[number])
        return args

    def keywords(self, moved: Mapping[int, Any], values: Mapping[int, Any]) -> dict[str, Any]:
        """The same for its keyword arguments."""
        given = self.operation.kwargs
        if not given:
            return {}
        found: dict[str, Any] = substitute(given, lambda number: moved[number] if number in moved else values[number])
        return found


class Step(NamedTuple):
    """One operation between a parameter and J.

    Attributes:
        prepared: the operation.
        inputs: numbers of the values that it reads and that depend on the parameter.
        last_use: those of the inputs that no later step reads.
    """

    prepared: Prepared
    inputs: tuple[int, ...]
    last_use: tuple[int, ...]


class Program:
    """J as operations on numbered values, with every value at θ that depends on a parameter.

    Attributes:
        parameters: the number of every parameter's value.
        output: the number of J's.
        operations: the operations that J depends on, in order.
        values: the values at θ.
    """

    def __init__(self, tape: Tape, parameters: Sequence[int], output: int) -> None:
        self.parameters = list(parameters)
        self.output = output
        self.operations = _needed(tape, output)
        used = {output, *parameters, *(i for operation in self.operations for i in operation.inputs())}
        self.values: dict[int, Tensor] = {i: x for i, x in tape.constants.items() if i in used}
        self._prepared = [self._run(operation) for operation in self.operations]
        self._suffixes: dict[int, list[Step]] = {}

    def _run(self, operation: Operation) -> Prepared:
        """Evaluate one operation at θ."""
        args, results = _performed(operation, self.values)
        rule = rule_of(operation.func) or by_vmap
        return Prepared(
            operation,
            rule,
            tuple(dict.fromkeys(operation.inputs())),
            args,
            tuple((position, x.id) for position, x in enumerate(operation.args) if type(x) is Ref),
            tuple((position, x) for position, x in enumerate(operation.args) if type(x) is list),
            results,
            fresh=rule in FRESH and isinstance(operation.func, OpOverload) and not is_view(operation.func),
            passing=rule in PASSING,
        )

    def again(self) -> float | None:
        """J by the record at what the parameters hold now; None where the record contains draws made at θ.

        Raises:
            Strayed: there J may be another record.
        """
        if any(step.prepared.operation.frozen is not None for step in self._dependent):
            return None
        try:
            return float(self.replayed([self.values[number] for number in self.parameters]))
        except (RuntimeError, ValueError) as error:  # an operation that is not defined there: a probability above 1
            if is_out_of_memory(error):
                raise
            raise Strayed(f"an operation raises away from θ: {error}") from error

    def replayed(
        self, parameters: Sequence[Tensor], formula: Callable[[Any], Callable[..., Any]] = lambda func: func
    ) -> Tensor:
        """J by the record with other tensors in the place of the parameters; draws are those made at θ.

        Args:
            parameters: these tensors.
            formula: gives the function to call for a recorded one.

        Raises:
            Strayed: J reads another value there than at θ, so that it may be another record.
        """
        moved = dict(zip(self.parameters, parameters, strict=True))
        for prepared, _, last_use in self._dependent:
            operation, results = prepared.operation, prepared.operation.frozen
            if operation.is_guard:
                self._check(operation, moved)
            elif results is None:
                args, kwargs = prepared.arguments(moved, self.values), prepared.keywords(moved, self.values)
                results = tuple(flatten(formula(operation.func)(*args, **kwargs)))
            moved.update(zip(operation.outputs, results or (), strict=True))
            for number in last_use:
                moved.pop(number, None)
        return moved.get(self.output, self.values[self.output])

    def _check(self, guard: Operation, moved: Mapping[int, Tensor]) -> None:
        assert isinstance(guard.func, Guard)
        for number in guard.inputs():
            if number in moved and bool(guard.func.differs(moved[number], self.values[number]).any()):
                strayed = guard.strayed("with all parameters moved")
                strayed.upstream = frozenset(p for p in range(len(self.parameters)) if self._depends(guard, p))
                raise strayed

    def _depends(self, operation: Operation, parameter: int) -> bool:
        return any(step.prepared.operation is operation for step in self.suffix(parameter))

    @cached_property
    def _dependent(self) -> list[Step]:
        """The operations between any parameter and J, in order."""
        return self._between(self.parameters)

    def suffix(self, parameter: int) -> list[Step]:
        """The operations between one parameter and J, in order."""
        if parameter not in self._suffixes:
            self._suffixes[parameter] = self._between([self.parameters[parameter]])
        return self._suffixes[parameter]

    def footprint(self, parameter: int) -> Footprint:
        """The footprint of one perturbation of a parameter that changes every entry of every value."""
        suffix = self.suffix(parameter)
        in_use = peak = self.values[self.parameters[parameter]].nbytes
        written = 0
        for step in suffix:
            result = sum(self.values[number].nbytes for number in step.prepared.operation.outputs)
            written += result
            in_use += result
            peak = max(peak, in_use)
            in_use -= sum(self.values[number].nbytes for number in step.last_use)
        return Footprint(peak, written, len(suffix))

    def _between(self, seeds: Sequence[int]) -> list[Step]:
        """The operations between some values and J, in order."""
        reached, operations = set(seeds), []
        for prepared in self._prepared:
            if not reached.isdisjoint(prepared.inputs):
                reached.update(prepared.operation.outputs)
                operations.append(prepared)
        steps: list[Step] = []
        read_later = {self.output}
        for prepared in reversed(operations):
            inputs = tuple(i for i in prepared.inputs if i in reached)
            last = tuple(i for i in inputs if i not in read_later)
            read_later.update(last)
            steps.append(Step(prepared, inputs, last))
        return steps[::-1]


def _performed(operation: Operation, values: dict[int, Tensor]) -> tuple[tuple[Any, ...], list[Tensor]]:
    """Run one operation on known values and add its results to them; gives its positional arguments and its results."""
    args, kwargs = substitute((operation.args, operation.kwargs), values.__getitem__)
    results = flatten(operation.func(*args, **kwargs)) if operation.frozen is None else list(operation.frozen)
    values.update(zip(operation.outputs, results, strict=True))
    return args, results


def _needed(tape: Tape, output: int) -> list[Operation]:
    """The operations that J depends on, the guards of what was recorded among them, in order."""
    wanted, needed = {output}, []
    for operation in reversed(tape.operations):
        if operation.is_guard or any(i in wanted for i in operation.outputs):
            wanted.update(operation.inputs())
            needed.append(operation)
    return needed[::-1]


def compiled(objective: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Program:
    """Record J and evaluate the record once.

    Raises:
        Untraceable: J cannot be recorded, or the record gives another value.
    """
    for parameter in parameters:
        if parameter.device.type != "cpu":
            raise Untraceable(f"a parameter is on {parameter.device}; recorded operations are evaluated on the CPU")
    with OnThreads(1):  # J is evaluated once: spreading short operations costs more than it saves
        try:
            found = record(objective, parameters)
            with modes_disabled(), torch.no_grad():
                program = Program(found.tape, found.parameters, found.output)
        except Untraceable:
            raise
        except Exception as error:  # J has been evaluated before, so this is for the recording to answer for
            raise Untraceable(f"J raises {type(error).__name__} while it is recorded: {error}") from error
    again, J = float(program.values[found.output]), found.J
    tolerance = 1e4 * torch.finfo(program.values[found.output].dtype).eps
    if not abs(again - J) <= tolerance * max(abs(J), abs(again)):
        raise Untraceable(f"the recorded operations give {again!r} where J is {J!r}")
    return program
