"""The Jacobian by forward-mode AD."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_gradcheck.arrays import Floats
from torch_gradcheck.drop_in.columns import Columns
from torch_gradcheck.drop_in.failure import GradcheckFailedError
from torch_gradcheck.drop_in.function import LentFunction
from torch_gradcheck.drop_in.rows import Rows, vector
from torch_gradcheck.errors import InvalidRequestError

Tangents = list[Tensor | None]


def check_has_forward_mode(function: LentFunction) -> None:
    """Raises where an input is of a layout that has no tangents."""
    for each in function.inputs:
        if each.given.is_mkldnn:
            raise InvalidRequestError("MKLDNN inputs are not support for forward AD gradcheck.")


def forward_jacobian(function: LentFunction, rows: Rows, columns: Columns, check_dtypes: bool) -> Floats:
    """The Jacobian by one run of the function under forward mode for each column, shape (M, N)."""
    found = []
    for column in range(len(columns.owners)):
        moving = {int(columns.owners[column]): columns.tangent(column)}
        with function.run():
            outputs, tangents = _run(function, moving)
            found.append(rows.of(vector(_filled(outputs, tangents, check_dtypes))))
    return np.array(found).T.reshape(len(rows.owners), len(found))


def check_undefined_tangents(function: LentFunction, columns: Columns) -> None:
    """Raises where an input without a tangent gives other tangents than one whose tangent is zero."""
    moving = {int(columns.owners[k]): columns.tangent(k) for k in range(len(columns.owners))}
    for position in moving:
        with function.run():
            still = {**moving, position: torch.zeros_like(moving[position])}
            _, with_zero = _run(function, still)
        with function.run():
            _, without = _run(function, {k: v for k, v in moving.items() if k != position}, others=False)
        for one, other in zip(with_zero, without, strict=True):
            if one is not None and other is not None and not torch.allclose(one, other):
                raise GradcheckFailedError(
                    f"Mismatch in tangent values where input {position} has an undefined tangent: got {other}, and "
                    f"{one} where its tangent is zero."
                )


def _run(function: LentFunction, moving: dict[int, Tensor], others: bool = True) -> tuple[list[Tensor], Tangents]:
    """The differentiable outputs and their tangents, where these inputs have tangents.

    Args:
        function: what is run; inside of an evaluation.
        moving: the tangents, by the position of the input.
        others: give the other inputs tangents of zero; otherwise none.
    """
    with forward_ad.dual_level():
        tensors = [each.leaf().detach() for each in function.inputs]
        for position, tensor in enumerate(tensors):
            if others or position in moving:
                tangent = moving[position] if position in moving else torch.zeros_like(tensor)
                tensors[position] = forward_ad.make_dual(tensor, tangent)
        pairs = [forward_ad.unpack_dual(output) for output in function.chosen(function.called(tensors))]
        return [primal.detach() for primal, _ in pairs], [tangent for _, tangent in pairs]


def _filled(outputs: Sequence[Tensor], tangents: Tangents, check_dtypes: bool) -> list[Tensor]:
    """The tangents, zeros where there is none; raises where the tangent of a real output is complex, or the reverse."""
    filled = []
    for output, tangent in zip(outputs, tangents, strict=True):
        if tangent is not None and check_dtypes and tangent.is_complex() != output.is_complex():
            raise GradcheckFailedError(
                f"Forward AD gradient has dtype mismatch: {tangent.dtype} for an output of {output.dtype}."
            )
        filled.append(torch.zeros_like(output) if tangent is None else tangent.detach().to(output.dtype))
    return filled
