"""How long differences at every coordinate would take, from the shapes in a record of J: an estimate, and no clock.

A coordinate of a weight touches one column of its layer's output, the next layer sees one column of its input moved,
and only from the third one on is whole products worth the work. What an operation costs is counted in multiplications
and entries written; the rates are those of the traced engine on a plain laptop core.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.program import Program, Step

SECONDS_A_PRODUCT = 1e-10
"""What a multiplication and addition in a matrix product or a convolution takes."""

SECONDS_AN_ENTRY = 5e-10
"""What an entry that another operation writes takes."""

SECONDS_A_SAMPLE = 2e-6
"""What a perturbation takes at least, however little it touches."""

SECONDS_AN_OPERATION = 1e-7
"""What an operation takes besides, its share in those of a whole chunk of perturbations."""

aten = torch.ops.aten

_SECOND_FACTOR = {aten.mm.default: 1, aten.bmm.default: 1, aten.addmm.default: 2, aten.baddbmm.default: 2}
"""Position of the matrix whose first dimension but the batch is summed over."""


def seconds_each(program: Program, parameter: int) -> float:
    """What J with one coordinate of this parameter moved takes, as an estimate."""
    depth: dict[int, int] = {program.parameters[parameter]: 0}
    seconds = SECONDS_A_SAMPLE
    for step in program.suffix(parameter):
        layers = min(depth[number] for number in step.inputs)
        products = _products(program, step)
        for number in step.prepared.operation.outputs:
            depth[number] = layers + bool(products)
        seconds += SECONDS_AN_OPERATION + _seconds(program, step, products, layers)
    return seconds


def _seconds(program: Program, step: Step, products: float, layers: int) -> float:
    """Of one operation, `layers` products after the parameter."""
    written = max(program.values[number].numel() for number in step.prepared.operation.outputs)
    column = written / max(_width(program.values[step.prepared.operation.outputs[0]]), 1)
    if products and layers >= 2:
        return products * SECONDS_A_PRODUCT
    spread = layers >= 2 or (products and layers == 1)
    return (written if spread else column) * SECONDS_AN_ENTRY


def _products(program: Program, step: Step) -> float:
    """Multiplications in a matrix product or a convolution, 0 for anything else."""
    function, args = step.prepared.operation.func, step.prepared.operation.args
    if function is aten.convolution.default:
        weight = program.values[args[1].id]
        summed = weight.numel() / weight.shape[1 if args[6] else 0]
    elif function in _SECOND_FACTOR:
        summed = program.values[args[_SECOND_FACTOR[function]].id].shape[-2]
    else:
        return 0.0
    return float(program.values[step.prepared.operation.outputs[0]].numel() * summed)


def _width(x: Tensor) -> int:
    """Columns of a layer's output: channels of images, features of all else."""
    return int(x.shape[1 if x.ndim >= 4 else -1]) if x.ndim >= 2 else 1
