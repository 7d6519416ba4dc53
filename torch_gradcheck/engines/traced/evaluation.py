"""J for many perturbations at a time: operation after operation, each on the entries that they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from torch_gradcheck.engines.traced.program import Prepared, Program, Step
from torch_gradcheck.engines.traced.rules.by_vmap import by_vmap
from torch_gradcheck.engines.traced.rules.perturbed import Perturbed
from torch_gradcheck.engines.traced.rules.registry import NoRuleError, OperationCall
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.torch_internals.devices import is_out_of_memory


def evaluated(program: Program, parameter: int, start: Perturbed, between: Callable[[], None]) -> tuple[Tensor, int]:
    """J with one parameter perturbed, shape (K,), and the largest number of bytes that values took at a time.

    Args:
        program: J.
        parameter: position of the parameter in θ.
        start: the parameter under K perturbations.
        between: called after every operation.

    Raises:
        Untraceable: an operation has no rule that works on these values.
    """
    perturbed: dict[int, Perturbed] = {program.parameters[parameter]: start}
    in_use = peak = start.stored.nbytes
    for step in program.suffix(parameter):
        operands = {number: perturbed[number] for number in step.inputs if number in perturbed}
        if operands:
            _mark(step, operands)
            results = _apply(step.prepared, program.values, perturbed, start.count)
            for number, result in zip(step.prepared.operation.outputs, results, strict=True):
                if result is not None:
                    result.owned = _is_owned(step, result, operands)
                    perturbed[number] = result
                    in_use += result.stored.nbytes
            peak = max(peak, in_use)
            between()
        for number in step.last_use:
            if number in perturbed:
                in_use -= perturbed.pop(number).stored.nbytes
    if program.output not in perturbed:
        return program.values[program.output].reshape(1).expand(start.count), peak
    return perturbed[program.output].values.reshape(start.count), peak


def _mark(step: Step, operands: dict[int, Perturbed]) -> None:
    """Mark the operands whose memory the rule may write to."""
    for number, x in operands.items():
        x.owned = x.owned and (step.prepared.fresh or step.prepared.passing)
        x.spare = x.owned and number in step.last_use


def _is_owned(step: Step, result: Perturbed, operands: dict[int, Perturbed]) -> bool:
    """Whether nothing else reads the memory of a result; an operand that shares it and is read again is not owned."""
    for number, x in operands.items():
        if x.stored is result.stored or (step.prepared.passing and _share_memory(x.stored, result.stored)):
            owned = x.owned and number in step.last_use
            x.owned = False
            return owned
    return step.prepared.fresh or step.prepared.passing


def _share_memory(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def _apply(prepared: Prepared, values: dict[int, Tensor], perturbed: dict[int, Perturbed], count: int) -> Any:
    operation = prepared.operation
    if operation.frozen is not None:
        reason = f"{operation.name} draws random numbers by a law that depends on the parameter"
        raise Untraceable(reason, op=operation.name, module=operation.module)

    args, kwargs = prepared.arguments(perturbed, values), prepared.keywords(perturbed, values)
    call = OperationCall(operation.func, tuple(args), kwargs, prepared.bases, count)
    try:
        try:
            return prepared.rule(call)
        except NoRuleError:
            return by_vmap(call)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        reason = f"{operation.name} cannot be evaluated for many perturbations: {error}"
        raise Untraceable(reason, op=operation.name, module=operation.module) from error
