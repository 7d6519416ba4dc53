"""The backward of an autograd.Function as a function of its own, which J differentiates once more.

J does where it asks for gradients with `create_graph=True`, as a gradient penalty does. That backward then has inputs,
the gradients that it is given and the inputs of the forward; and outputs, which have a graph. A path lost in it, as by
detached saved tensors, is a mistake of its double backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function


def gradients_with_graph(
    function: type[Function], inputs: Sequence[Any], asked: Sequence[int], cotangents: Sequence[torch.Tensor | None]
) -> list[torch.Tensor]:
    """The gradients, with a graph, that the backward of a Function gives; without those that are None.

    Args:
        function: whose forward runs, and then its backward.
        inputs: the arguments of the forward.
        asked: the positions of those that require a gradient.
        cotangents: what the backward is given, one for each output of the forward.
    """
    with torch.enable_grad():
        given = list(inputs)
        for k in asked:  # one tensor each: a tensor that is given twice gets two gradients
            given[k] = given[k].clone() if given[k].requires_grad else given[k].detach().clone().requires_grad_()
        result = function.apply(*given)
        outputs = result if isinstance(result, tuple) else (result,)
        pairs = [(y, g) for y, g in zip(outputs, cotangents, strict=True) if g is not None and y.requires_grad]
        if not pairs:
            return []
        found = torch.autograd.grad(
            [y for y, _ in pairs],
            [given[k] for k in asked],
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
    gradients: list[torch.Tensor | None] = list(found)
    return [gradient for gradient in gradients if gradient is not None]
