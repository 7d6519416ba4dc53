"""J for many perturbations at a time, operation after operation, each on what they touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from torch_gradcheck.engines.traced.chunks import is_out_of_memory
from torch_gradcheck.engines.traced.program import Prepared, Program, Step
from torch_gradcheck.engines.traced.recording.tape import substitute
from torch_gradcheck.engines.traced.rules.by_vmap import by_vmap
from torch_gradcheck.engines.traced.rules.perturbed import Perturbed
from torch_gradcheck.engines.traced.rules.registry import NoRuleError, OperationCall
from torch_gradcheck.engines.traced.untraceable import Untraceable


def evaluated(program: Program, parameter: int, moved: Perturbed, between: Callable[[], None]) -> tuple[Tensor, int]:
    """J with one parameter touched, shape (K,), and the most bytes that were held on the way.

    Args:
        program: J.
        parameter: which one.
        moved: it, touched.
        between: called after every operation.

    Raises:
        Untraceable: an operation has no rule that works on these values.
    """
    touched: dict[int, Perturbed] = {program.parameters[parameter]: moved}
    held = peak = moved.held.nbytes
    for step in program.suffix(parameter):
        operands = {number: touched[number] for number in step.inputs if number in touched}
        if operands:
            _mark(step, operands)
            results = _apply(step.prepared, program.values, touched, moved.count)
            for number, result in zip(step.prepared.operation.outputs, results, strict=True):
                if result is not None:
                    result.owned = _is_owned(step, result, operands)
                    touched[number] = result
                    held += result.held.nbytes
            peak = max(peak, held)
            between()
        for number in step.last_use:
            if number in touched:
                held -= touched.pop(number).held.nbytes
    if program.output not in touched:
        return program.values[program.output].reshape(1).expand(moved.count), peak
    return touched[program.output].new.reshape(moved.count), peak


def _mark(step: Step, operands: dict[int, Perturbed]) -> None:
    """Tell the rule which memory it may write to."""
    for number, x in operands.items():
        x.owned = x.owned and (step.prepared.fresh or step.prepared.passing)
        x.spare = x.owned and number in step.last_use


def _is_owned(step: Step, result: Perturbed, operands: dict[int, Perturbed]) -> bool:
    """Whether nothing else reads the memory of a result; an operand that is read again and shares it loses its own."""
    for number, x in operands.items():
        if x.held is result.held or (step.prepared.passing and _share_memory(x.held, result.held)):
            owned = x.owned and number in step.last_use
            x.owned = False
            return owned
    return step.prepared.fresh or step.prepared.passing


def _share_memory(x: Tensor, y: Tensor) -> bool:
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def _apply(prepared: Prepared, values: dict[int, Tensor], touched: dict[int, Perturbed], count: int) -> Any:
    operation = prepared.operation
    if operation.frozen is not None:
        reason = f"{operation.name} draws random numbers by a law that depends on the parameter"
        raise Untraceable(reason, op=operation.name, module=operation.module)

    def value(number: int) -> Tensor | Perturbed:
        return touched.get(number) or values[number]

    args = list(prepared.args)
    for position, number in prepared.places:
        if number in touched:
            args[position] = touched[number]
    for position, tree in prepared.lists:
        args[position] = substitute(tree, value)
    kwargs = substitute(operation.kwargs, value) if operation.kwargs else {}
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
