"""J for many perturbations at a time: operation after operation, each on the entries that they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.program import Prepared, Program, Step
from torch_gradcheck.engines.traced.recording.tape import Guard, Operation
from torch_gradcheck.engines.traced.rules.by_vmap import by_vmap
from torch_gradcheck.engines.traced.rules.perturbed import Perturbed, pick
from torch_gradcheck.engines.traced.rules.registry import NoRuleError, OperationCall
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.torch_internals.devices import is_out_of_memory


class Evaluated(NamedTuple):
    """J with one parameter perturbed.

    Attributes:
        J: shape (K,).
        peak_bytes: the largest number of bytes that values took at a time.
        strayed: shape (K,), of dtype bool: for these perturbations a guard does not hold, and J may be another value;
            None where all hold.
        guard: one that does not hold.
    """

    J: Tensor
    peak_bytes: int
    strayed: Tensor | None
    guard: Operation | None


def evaluated(program: Program, parameter: int, start: Perturbed, between: Callable[[], None]) -> Evaluated:
    """J for K perturbations of one parameter.

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
    strayed, guard = None, None
    for step in program.suffix(parameter):
        operands = {number: perturbed[number] for number in step.inputs if number in perturbed}
        if operands and isinstance(step.prepared.operation.func, Guard):
            found = _differs(step.prepared.operation.func, *operands.values())
            if found is not None:
                strayed, guard = found if strayed is None else strayed | found, step.prepared.operation
        elif operands:
            _mark(step, operands)
            results = _apply(step.prepared, program.values, perturbed, start.count)
            for number, result in zip(step.prepared.operation.outputs, results, strict=True):
                if result is not None and not _is_as_at_theta(result):
                    result.owned = _is_owned(step, result, operands)
                    perturbed[number] = result
                    in_use += result.stored.nbytes
            peak = max(peak, in_use)
            between()
        for number in step.last_use:
            if number in perturbed:
                in_use -= perturbed.pop(number).stored.nbytes
    if program.output not in perturbed:
        J = program.values[program.output].reshape(1).expand(start.count)
    else:
        J = perturbed[program.output].values.reshape(start.count)
    return Evaluated(J, peak, strayed, guard)


def _is_as_at_theta(x: Perturbed) -> bool:
    """Whether no perturbation changes a tensor of Booleans or integers, as most change no comparison and no index."""
    if x.base.is_floating_point() or x.base.is_complex():
        return False
    return torch.equal(x.values, pick(x.base, x.region).expand_as(x.values))


def _differs(guard: Guard, x: Perturbed) -> Tensor | None:
    """For which perturbations a value is another than at θ, shape (K,); None where for none."""
    differs = guard.differs(x.values, pick(x.base, x.region)).reshape(x.count, -1).any(1)
    return differs if bool(differs.any()) else None


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
