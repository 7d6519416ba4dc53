"""What torch does not take of a Function's backward: the gradients that it returns, or how it is to be called."""

from __future__ import annotations

import re
from types import CodeType
from typing import Any

from torch_gradcheck.torch_internals.code_lines import is_of_the_user
from torch_gradcheck.torch_internals.refused_calls import RUNS_A_BACKWARD, codes_of, raises_itself

INVALID = re.compile(r"^Function (\w+) returned an invalid gradient at index (\d+) - ")
"""Of a gradient of another shape than its argument, or on another device; the index counts the tensors among these."""

MISCOUNTED = re.compile(r"^function (\w+) returned an incorrect number of gradients ")

OF_NO_TENSOR = re.compile(r"^function (\w+) returned a gradient different (?:from|than) None at position (\d+), but ")
"""Of a gradient for an argument that is no tensor; the position counts all arguments, from 1."""

NO_GRADIENT = re.compile(r"^expected Variable or None \(got ")
"""Of something that is neither a tensor nor None."""

OF_RETURNED = (INVALID, MISCOUNTED, OF_NO_TENSOR, NO_GRADIENT)


def is_of_returned_gradients(error: BaseException) -> bool:
    """Whether torch has raised an exception because of the gradients that the backward of a Function has returned."""
    codes = codes_of(error)
    if type(error) is not RuntimeError or not codes or codes[-1].co_name != RUNS_A_BACKWARD:
        return False
    return any(each.match(str(error)) for each in OF_RETURNED)


def is_of_calling_backward(error: BaseException) -> bool:
    """Whether torch could not call the backward of a Function: it takes other arguments, or there is none."""
    wrong = type(error) is NotImplementedError if raises_itself(error) else type(error) is TypeError
    return wrong and _is_caller(codes_of(error))


def _is_caller(codes: list[CodeType]) -> bool:
    """Whether the innermost code of a traceback is what torch calls backwards by, and no code of the user's since."""
    runs = [k for k, code in enumerate(codes) if code.co_name == RUNS_A_BACKWARD]
    return bool(runs) and runs[-1] < len(codes) - 1 and not [c for c in codes[runs[-1] :] if is_of_the_user(c)]


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
        return next((k for k, each in enumerate(returned) if each is not None and not hasattr(each, "grad_fn")), None)
    return None


def _of_edge(node: Any, number: int) -> int | None:
    """The argument that an edge of a node belongs to; see `input_forms` of `autograd` for what has an edge."""
    edges = [k for k, (following, _) in enumerate(node.next_functions) if following is not None]
    asked = [position for position, needed in enumerate(node.needs_input_grad) if needed]
    return dict(zip(edges, asked, strict=False)).get(number)
