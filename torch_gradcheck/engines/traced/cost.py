"""Estimates the seconds that differences at every coordinate would take, from the shapes in a record of J.

A coordinate of a weight changes one column of its layer's output, which is one column of the next layer's input. Only
from the third layer on do perturbations take whole products. The cost of an operation is counted in multiplications and
in entries written; the rates are those of the traced engine on one core of a laptop.
"""

from __future__ import annotations

from torch import Tensor

from torch_gradcheck.engines.traced.program import Program, Step
from torch_gradcheck.torch_internals.operations import existing, overload

SECONDS_A_PRODUCT = 1e-10
"""Seconds of one multiplication and addition in a matrix product or a convolution: 10 a nanosecond."""

SECONDS_AN_ENTRY = 5e-10
"""Seconds of one entry that any other operation writes: 2 a nanosecond."""

CACHED = 2**15
"""Entries (256 KiB in float64) up to which a perturbed column stays in the cache."""

SECONDS_AN_ENTRY_FETCHED = 1e-8
"""Seconds of one entry of a larger column of the perturbed tensor, such as a channel of an image: from memory."""

SECONDS_A_SAMPLE = 2e-6
"""Seconds of one perturbation that changes nothing."""

SECONDS_AN_OPERATION = 1e-7
"""Seconds of one operation beside its entries: its fixed cost, divided by the perturbations of a chunk."""

_CONVOLUTION = overload("convolution.default")

_SECOND_FACTOR = {
    **dict.fromkeys(existing("mm.default", "bmm.default"), 1),
    **dict.fromkeys(existing("addmm.default", "baddbmm.default"), 2),
}
"""Operation → position of its second factor, over whose last dimension but one the product sums."""


def seconds_each(program: Program, parameter: int) -> float:
    """The estimated seconds of J with one coordinate of this parameter perturbed."""
    number = program.parameters[parameter]
    depth: dict[int, int] = {number: 0}
    column = program.values[number].numel() / max(_width(program.values[number]), 1)
    seconds = SECONDS_A_SAMPLE + (column * SECONDS_AN_ENTRY_FETCHED if column > CACHED else 0.0)
    for step in program.suffix(parameter):
        layers = min(depth[number] for number in step.inputs)
        products = _products(program, step)
        for number in step.prepared.operation.outputs:
            depth[number] = layers + bool(products)
        if step.prepared.operation.is_guard:
            continue
        seconds += SECONDS_AN_OPERATION + _seconds(program, step, products, layers)
    return seconds


def _seconds(program: Program, step: Step, products: float, layers: int) -> float:
    """The seconds of one operation that stands `layers` products behind the parameter."""
    written = max(program.values[number].numel() for number in step.prepared.operation.outputs)
    column = written / max(_width(program.values[step.prepared.operation.outputs[0]]), 1)
    if products and layers >= 2:
        return products * SECONDS_A_PRODUCT
    spread = layers >= 2 or (products and layers == 1)
    return (written if spread else column) * SECONDS_AN_ENTRY


def _products(program: Program, step: Step) -> float:
    """The number of multiplications in a matrix product or a convolution, 0 for any other operation."""
    function, args = step.prepared.operation.func, step.prepared.operation.args
    if function is _CONVOLUTION:
        weight = program.values[args[1].id]
        summed = weight.numel() / weight.shape[1 if args[6] else 0]
    elif function in _SECOND_FACTOR:
        summed = program.values[args[_SECOND_FACTOR[function]].id].shape[-2]
    else:
        return 0.0
    return float(program.values[step.prepared.operation.outputs[0]].numel() * summed)


def _width(x: Tensor) -> int:
    """The number of columns of a layer's output: channels of images, features of any other."""
    return int(x.shape[1 if x.ndim >= 4 else -1]) if x.ndim >= 2 else 1
