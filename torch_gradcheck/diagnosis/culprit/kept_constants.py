"""Why a double backward is wrong: what a Function keeps from its forward without a graph, or a graph that is lost."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from torch_gradcheck.diagnosis.culprit.argument_copies import tensors_of
from torch_gradcheck.diagnosis.culprit.arguments_alone import arguments_with_leaves, moved_arguments
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.single_calls import CallRunner, CannotBeRunAlone
from torch_gradcheck.diagnosis.culprit.tangents import Tangents, WrongCoordinate
from torch_gradcheck.gradients.double_backward import kept_intermediates
from torch_gradcheck.reporting.words import listed

STEP = 1e-3
"""How far the coordinate is moved to see what moves with it, relative to max(1, |θ_i|)."""


def why_wrong(
    runner: CallRunner, call: RecordedCall, tangents: Mapping[RecordedCall, Tangents], wrong: WrongCoordinate
) -> str:
    """Words on why the backward of a Function, differentiated once more, is wrong; "" where nothing is seen.

    Args:
        runner: runs calls alone.
        call: that backward, as J runs it.
        tangents: of the inputs of every call, along the coordinate.
        wrong: the coordinate.
    """
    forward = call.differentiates
    if forward is None or forward not in tangents:
        return ""
    try:
        constants = _constants(runner, forward, tangents[forward], wrong)
        if len(constants) == 1:
            return (
                f"it takes {constants[0]} for a constant, an intermediate of its forward without a graph; return it as "
                "an output of forward, or compute it in backward from saved inputs"
            )
        if constants:
            return (
                f"it takes {listed(constants)} for constants, intermediates of its forward without a graph; return "
                "them as outputs of forward, or compute them in backward from saved inputs"
            )
        return "" if _has_graph(runner, call) else "what it returns has no graph"
    except CannotBeRunAlone:
        return ""


def _constants(runner: CallRunner, forward: RecordedCall, along: Tangents, wrong: WrongCoordinate) -> list[str]:
    """What the Function keeps without a graph, though it moves with the coordinate."""
    here, _ = _run(runner, forward, along, wrong, 0.0)
    there, frozen = _run(runner, forward, along, wrong, STEP * wrong.unit)
    return [each.name for each in kept_intermediates(here, there, frozen)]


def _run(
    runner: CallRunner, forward: RecordedCall, along: Tangents, wrong: WrongCoordinate, step: float
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The outputs of the forward, and those of its inputs that require no gradient, with the coordinate moved."""
    with wrong.moved(step) as taken, runner.alone(forward), torch.enable_grad():
        arguments = moved_arguments(forward, along, taken)
        outputs = tensors_of(forward.run(arguments))
    return outputs, [tensor for tensor in tensors_of(arguments) if not tensor.requires_grad]


def _has_graph(runner: CallRunner, call: RecordedCall) -> bool:
    """Whether any gradient that the backward gives can be differentiated."""
    with runner.alone(call), torch.enable_grad():
        return any(tensor.requires_grad for tensor in tensors_of(call.run(arguments_with_leaves(call, []))))
