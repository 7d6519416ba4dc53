"""What torch does not take of a Function's backward: the gradients that it returns, or how it is to be called."""

from __future__ import annotations

import re
from traceback import walk_tb
from types import CodeType
from typing import Any, NamedTuple

import torch

from torch_gradcheck.torch_internals.autograd import input_forms
from torch_gradcheck.torch_internals.code_lines import is_of_the_user
from torch_gradcheck.torch_internals.refused_calls import RUNS_A_BACKWARD, codes_of, raises_itself

INVALID = re.compile(r"^Function (\w+) returned an invalid gradient at index (\d+) - ")
"""Of a gradient of another shape than its argument, or on another device; the index counts the tensors among these."""

MISCOUNTED = re.compile(r"^function (\w+) returned an incorrect number of gradients ")

OF_NO_TENSOR = re.compile(r"^function (\w+) returned a gradient different (?:from|than) None at position (\d+), but ")
"""Of a gradient for an argument that is no tensor; the position counts all arguments, from 1."""

NO_GRADIENT = re.compile(r"^expected Variable or None \(got ")
"""Of something that is neither a tensor nor None."""

COMPLEX = re.compile(r"^Expected isFloatingType\(grad\.scalar_type\(\)\) \|\| \(input_is_complex")
"""Of a complex gradient for a real argument."""

UNUSUAL = re.compile(r"^Creation of quantized tensor requires|.*NestedTensorImpl doesn't support sizes")
"""Of a gradient in a form that autograd cannot bring into that of its argument."""

OF_RETURNED = (INVALID, MISCOUNTED, OF_NO_TENSOR, NO_GRADIENT, COMPLEX, UNUSUAL)

REDUCES = "reductify"
"""The function of torch that brings what a backward has returned under torch.vmap into the form of the arguments."""


def is_of_returned_gradients(error: BaseException) -> bool:
    """Whether torch has raised an exception because of the gradients that the backward of a Function has returned."""
    codes = codes_of(error)
    if type(error) is RuntimeError and codes and codes[-1].co_name == RUNS_A_BACKWARD:
        return any(each.match(str(error)) for each in OF_RETURNED)
    return REDUCES in [code.co_name for code in codes] and _is_caller(codes)


class UnderVmap(NamedTuple):
    """What the backward of a Function has returned under torch.vmap, of one sample.

    Attributes:
        returned: the gradients, or whatever else it was; of batched tensors the shape is that of one sample.
        wanted: the shapes of the arguments, None of those that are no tensors.
    """

    returned: tuple[Any, ...]
    wanted: tuple[tuple[int, ...] | None, ...]


def returned_under_vmap(error: BaseException) -> UnderVmap | None:
    """What a backward has returned that torch could not use, where that ran under torch.vmap; else None."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_name == REDUCES]
    if not frames:
        return None
    given = frames[0].f_locals
    gradients, dims = _tuple(given["grad_input"]), _tuple(given["grad_input_bdim"])
    shapes = _tuple(given["target_shape_without_bdim_to_reduce_to"])
    samples = [_sample(gradient, dim) for gradient, dim in zip(gradients, dims, strict=False)]
    return UnderVmap(tuple(samples), tuple(None if shape is None else tuple(shape) for shape in shapes))


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _sample(gradient: Any, dim: Any) -> Any:
    """One sample of a batched tensor; anything else as it is."""
    return gradient.select(dim, 0) if isinstance(gradient, torch.Tensor) and dim is not None else gradient


def is_of_calling_backward(error: BaseException) -> bool:
    """Whether torch could not call the backward of a Function, which takes other arguments."""
    return type(error) is TypeError and not raises_itself(error) and _is_caller(codes_of(error))


def _is_caller(codes: list[CodeType]) -> bool:
    """Whether the innermost code of a traceback is what torch calls backwards by, and no code of the user's since."""
    runs = [k for k, code in enumerate(codes) if code.co_name == RUNS_A_BACKWARD]
    return bool(runs) and runs[-1] < len(codes) - 1 and not [c for c in codes[runs[-1] :] if is_of_the_user(c)]


def code_in_a_backward(error: BaseException) -> CodeType | None:
    """The code of the user's that a backward has called and that an exception has come out of; None for none."""
    codes = codes_of(error)
    runs = [k for k, code in enumerate(codes) if code.co_name == RUNS_A_BACKWARD]
    found = [code for code in codes[runs[0] :] if is_of_the_user(code)] if runs else []
    return found[0] if found else None


def refused_position(error: BaseException, node: Any, returned: tuple[Any, ...]) -> int | None:
    """The position, among the arguments of forward, of the first gradient that torch has refused; None for none.

    Args:
        error: what torch has raised, which `is_of_returned_gradients`.
        node: the node of the Function.
        returned: what its backward has returned.
    """
    said = str(error)
    if found := INVALID.match(said):
        return _of_edge(node, int(found[2]))
    if found := OF_NO_TENSOR.match(said):
        return int(found[2]) - 1
    if NO_GRADIENT.match(said):
        return next((k for k, each in enumerate(returned) if not (each is None or _is_tensor(each))), None)
    if COMPLEX.match(said):
        forms = input_forms(node)
        return next((k for k, each in enumerate(returned) if k in forms and _is_complex(each, forms[k].dtype)), None)
    if UNUSUAL.match(said):
        return next((k for k, each in enumerate(returned) if _is_tensor(each) and _is_unusual(each)), None)
    return None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _is_complex(gradient: Any, dtype: torch.dtype) -> bool:
    """Whether a gradient is complex where its argument is not."""
    return _is_tensor(gradient) and gradient.is_complex() and not dtype.is_complex


def _is_unusual(gradient: torch.Tensor) -> bool:
    return gradient.is_quantized or gradient.is_nested


def _of_edge(node: Any, number: int) -> int | None:
    """The argument that an edge of a node belongs to; see `input_forms` of `autograd` for what has an edge."""
    edges = [k for k, (following, _) in enumerate(node.next_functions) if following is not None]
    asked = [position for position, needed in enumerate(node.needs_input_grad) if needed]
    return dict(zip(edges, asked, strict=False)).get(number)
