"""torch's own table of operators as functions of tensors to check, each at one small sample of its arguments."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

SAMPLES = 24
"""How many of the samples of torch's own tests are looked at; those with an empty tensor on trial do not count."""

SMALL = 300
"""The largest sample of at most this many real numbers on trial is taken: one number alone shows little."""

LARGEST = 2000
"""Operators whose samples are all larger than this are left out."""

Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """An operator as a function of the tensors that are on trial; its other arguments are bound.

    Attributes:
        name: of the operator in torch's table, with that of its variant.
        function: takes the inputs, returns a tensor or a nest of them.
        inputs: leaves in float64 (complex128 for operators on complex numbers) that require a gradient.
    """

    name: str
    function: Function
    inputs: tuple[Tensor, ...]

    @property
    def entries(self) -> int:
        """How many real numbers are on trial."""
        return real_numbers(self.inputs)


def real_numbers(tensors: Sequence[Tensor]) -> int:
    """How many real numbers tensors hold; a complex one is two."""
    return sum(tensor.numel() * (2 if tensor.is_complex() else 1) for tensor in tensors)


def operators() -> list[Any]:
    """The rows of torch's table that have a gradient in float64 on the CPU, by its own account.

    Raises:
        ModuleNotFoundError: the table is part of torch's tests, which need `expecttest`.
    """
    table = importlib.import_module("torch.testing._internal.common_methods_invocations").op_db
    return [row for row in table if row.supports_autograd and torch.float64 in row.supported_backward_dtypes("cpu")]


def name_of(operator: Any) -> str:
    """The name of an operator and of its variant."""
    variant: str = operator.variant_test_name
    return f"{operator.name}.{variant}" if variant else str(operator.name)


def case_of(operator: Any, small: int = SMALL) -> Case | str:
    """The operator at the largest of its small samples; else the reason why there is none.

    Args:
        operator: a row of the table.
        small: how many real numbers may be on trial; where every sample has more, the smallest is taken.
    """
    torch.manual_seed(0)
    try:
        samples = operator.sample_inputs("cpu", torch.float64, requires_grad=True)
        cases = [case for case in islice(_cases(operator, samples), SAMPLES) if _is_usable(case)]
    except Exception as error:  # a sample that this build of torch cannot make, which is a figure
        return f"{type(error).__name__}: {str(error)[:200]}"
    if not cases:
        return "no sample with a finite output and a gradient"
    fitting = [case for case in cases if case.entries <= small]
    chosen = max(fitting, key=_entries) if fitting else min(cases, key=_entries)
    return chosen if chosen.entries <= LARGEST else f"the smallest sample has {chosen.entries:,} numbers"


def _entries(case: Case) -> int:
    return case.entries


def _cases(operator: Any, samples: Iterator[Any]) -> Iterator[Case]:
    for sample in samples:
        arguments = (sample.input, *sample.args, *sample.kwargs.values())
        inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in _on_trial(arguments))
        if inputs and all(tensor.numel() for tensor in inputs):
            yield Case(name_of(operator), _function(operator, sample), inputs)


def _on_trial(arguments: Sequence[Any]) -> list[Tensor]:
    """The tensors that require a gradient, among the arguments and inside of lists of tensors."""
    flat = [item for value in arguments for item in (value if _is_list(value) else [value])]
    return [item for item in flat if isinstance(item, Tensor) and item.requires_grad]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value)


def _function(operator: Any, sample: Any) -> Function:
    """The operator as torch's own tests of gradients call it: with its wrapper, and what they do to its output."""

    def placed(value: Any, given: Iterator[Tensor]) -> Any:
        if _is_list(value):
            return [placed(item, given) for item in value]
        return next(given) if isinstance(value, Tensor) and value.requires_grad else value

    def function(*tensors: Tensor) -> Any:
        given = iter(tensors)
        args = [placed(value, given) for value in (sample.input, *sample.args)]
        kwargs = {name: placed(value, given) for name, value in sample.kwargs.items()}
        output = operator.gradcheck_wrapper(operator.get_op(), *args, **kwargs)
        process = sample.output_process_fn_grad
        return output if process is None else process(output)

    return function


def _is_usable(case: Case) -> bool:
    """Whether the outputs are finite and have a gradient."""
    outputs = differentiable(case.function(*case.inputs))
    return bool(outputs) and all(bool(torch.isfinite(output).all()) for output in outputs)


def differentiable(result: Any) -> list[Tensor]:
    """The tensors in what a function returned that have a gradient and hold something."""
    if isinstance(result, Tensor):
        inexact = result.is_floating_point() or result.is_complex()
        return [result] if result.requires_grad and result.numel() and inexact else []
    items = result if isinstance(result, list | tuple) else ()
    return [tensor for item in items for tensor in differentiable(item)]
