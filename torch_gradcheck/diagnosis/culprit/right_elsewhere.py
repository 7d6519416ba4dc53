"""Gradients that would be right for something else than the call: what a wrong backward may have computed instead.

Each comes with the end of a sentence that begins "the gradient of the input". Whether it is the one on trial is left to
who asks; that it is, entry by entry, leaves no room for coincidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import nn

from torch_gradcheck.diagnosis.culprit.argument_copies import replaced, tensors_of
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.right_gradients import Cotangents, right_gradients
from torch_gradcheck.diagnosis.culprit.single_calls import CallRunner, CannotBeRunAlone
from torch_gradcheck.engines.traced.untraceable import Untraceable

MOST_TRIED = 8
"""Of more outputs than 8, or other inputs, none is left out."""

MOST_USES = 2_000
"""Of more look-ups than 2,000 in one call, none is left out."""

Tried = Iterator[tuple[str, Callable[[], torch.Tensor | None]]]
"""Words, and what computes the gradient that they stand for."""


def right_elsewhere(
    runner: CallRunner, call: RecordedCall, position: int, name_of: Callable[[int], str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Gradients of one input, with words; each takes a run of the call, and is left out where that raises.

    Args:
        runner: runs calls in the regime that J is evaluated in.
        call: the call, with the gradients that arrived.
        position: of the input among its tensors.
        name_of: what the input at a position is called.
    """
    tried = chain(
        _without_an_output(runner, call, position),
        _without_an_input(runner, call, position, name_of),
        _by_the_forward(runner, call, position),
        _of_the_transposed(runner, call, position),
        _of_one_use(runner, call, position, name_of),
    )
    for words, compute in tried:
        try:
            gradient = compute()
        except (Untraceable, CannotBeRunAlone, RuntimeError, ValueError):  # another J may not be computed
            continue
        if gradient is not None:
            yield words, gradient


def _without_an_output(runner: CallRunner, call: RecordedCall, position: int) -> Tried:
    """Right but for what arrives for one of the outputs."""
    arrived = [k for k, each in enumerate(call.cotangents) if each is not None]
    if not 1 < len(arrived) <= MOST_TRIED:
        return
    right = partial(_right, runner, call, position)
    for k in arrived:
        others = [None if j == k else each for j, each in enumerate(call.cotangents)]
        yield f"lacks what arrives for output {k}, and is right but for that", partial(right, others)


def _without_an_input(runner: CallRunner, call: RecordedCall, position: int, name_of: Callable[[int], str]) -> Tried:
    """Right where another input, or the parameter itself, is 1, or 0, in every entry."""
    inputs = call.inputs
    own = None if isinstance(inputs[position], nn.Parameter) else inputs[position]
    others = [k for k, each in enumerate(inputs) if each is not own and each.numel()]
    for k in others if len(others) <= MOST_TRIED else []:
        for value in _LEFT_OUT.get(inputs[k].dtype, ()):
            if not bool((inputs[k] == value).all()):
                changed = replace(call, inputs=[torch.full_like(x, value) if x is inputs[k] else x for x in inputs])
                words = f"is right for an {name_of(k)} of {value} in every entry: the backward leaves that out"
                yield words, partial(_right, runner, changed, position, call.cotangents)


_LEFT_OUT: Mapping[torch.dtype, tuple[float, ...]] = {torch.float64: (1, 0), torch.bool: (True, False)}
"""The values of an input that is not there, by its dtype."""


def _right(runner: CallRunner, call: RecordedCall, position: int, cotangents: Cotangents) -> torch.Tensor:
    return right_gradients(runner, call, cotangents)[position]


def _by_the_forward(runner: CallRunner, call: RecordedCall, position: int) -> Tried:
    """What the forward makes of the upstream gradient, where it gives one tensor of the input's shape."""
    if len(call.cotangents) != 1 or (upstream := call.cotangents[0]) is None:
        return
    if upstream.shape == call.inputs[position].shape:
        words = "is what the forward makes of the upstream gradient: the backward lacks the transpose"
        yield words, partial(_forward_of, runner, call, position, upstream)


def _forward_of(runner: CallRunner, call: RecordedCall, position: int, value: torch.Tensor) -> torch.Tensor | None:
    given = call.inputs[position]
    copies = iter([(value if each is given else each).detach().clone() for each in call.inputs])
    arguments = replaced(call.arguments, lambda tensor: next(copies, tensor))
    with runner.alone(call), torch.no_grad():
        outputs = tensors_of(call.run(arguments))
    return outputs[0] if len(outputs) == 1 and outputs[0].shape == value.shape else None


def _of_the_transposed(runner: CallRunner, call: RecordedCall, position: int) -> Tried:
    """Right for the upstream gradient transposed, where its last two axes are of one length; of no parameter.

    A bias that is summed over the wrong axis has that gradient, too.
    """
    if isinstance(call.inputs[position], nn.Parameter):
        return
    if len(call.cotangents) == 1 and (upstream := call.cotangents[0]) is not None and _is_square(upstream):
        words = "is right for the upstream gradient transposed in its last two axes"
        yield words, partial(_right, runner, call, position, [upstream.mT])


def _is_square(tensor: torch.Tensor) -> bool:
    return tensor.dim() > 1 and tensor.shape[-1] == tensor.shape[-2] > 1


def _of_one_use(runner: CallRunner, call: RecordedCall, position: int, name_of: Callable[[int], str]) -> Tried:
    """That of the last use, or the first, of each row of a table which another input looks up."""
    table = call.inputs[position]
    for k, index in enumerate(call.inputs):
        is_index = table.dim() and index.dtype == torch.int64 and 1 < index.numel() <= MOST_USES
        if not is_index or not bool(((index >= 0) & (index < len(table))).all()):
            continue
        used = index.flatten()
        for which, number in (("last", _last_uses(used)), ("first", _last_uses(used.flip(0)))):
            where = number if which == "last" else {row: len(used) - 1 - use for row, use in number.items()}
            if len(where) < len(used):
                words = f"counts only the {which} use of each row by {name_of(k)}: uses of the same row are not added"
                yield words, partial(_of_uses, runner, call, (position, k), where)


def _last_uses(used: torch.Tensor) -> dict[int, int]:
    return {row: use for use, row in enumerate(used.tolist())}


def _of_uses(runner: CallRunner, call: RecordedCall, places: tuple[int, int], uses: Mapping[int, int]) -> torch.Tensor:
    """The gradient of a table of which each row has that of one use: for this, each use looks up a row of its own."""
    table, index = (call.inputs[place] for place in places)
    own = table.detach()[index.flatten()], torch.arange(index.numel()).reshape(index.shape)
    inputs = [own[0] if each is table else own[1] if each is index else each for each in call.inputs]
    each_use = _right(runner, replace(call, inputs=inputs), places[0], call.cotangents)
    found = torch.zeros_like(table)
    found[list(uses)] = each_use[list(uses.values())]
    return found
