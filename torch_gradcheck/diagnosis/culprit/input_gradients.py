"""The gradients that a call gives for its inputs, beside the right ones and what a mistake may consist of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.culprit.argument_copies import replaced
from torch_gradcheck.diagnosis.culprit.attribution import Suspect
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.right_elsewhere import right_elsewhere
from torch_gradcheck.diagnosis.culprit.right_gradients import right_gradients
from torch_gradcheck.diagnosis.culprit.sentences import function_name, input_name
from torch_gradcheck.diagnosis.culprit.single_calls import CallRunner
from torch_gradcheck.diagnosis.kind.input_errors import InputGradient
from torch_gradcheck.objective.nested import tensors_in

MOVED = 0.9
"""To see what else depends on them, half of the inputs are moved to 0.9 of their values: probabilities stay some."""

UPSTREAM = "the upstream gradient"
"""The name of the gradient that arrived."""


def input_gradients(
    runner: CallRunner, suspect: Suspect, parameters: Collection[torch.Tensor] = ()
) -> dict[int, InputGradient]:
    """Those of the inputs with a graph, by position; empty where no gradient arrived, or none was recorded.

    Args:
        runner: runs calls in the regime that J is evaluated in.
        suspect: with the call.
        parameters: those among the inputs of a Function that are asked for as well.

    Raises:
        Untraceable, CannotBeRunAlone: as `right_gradients`.
    """
    call = suspect.call
    given = _positions(call, parameters)
    if not call.receives or not (call.tapped or given):
        return {}
    right = right_gradients(runner, call, call.cotangents)
    outputs, _ = runner.outputs_and_gradients(call)
    on_trial = call.returned | (_of_parameters(runner, call, given) if given else {})
    found: dict[int, InputGradient] = {}
    for k in (k for k in (*call.tapped, *given) if k in right):
        found[k] = InputGradient(
            as_array(on_trial.get(k, torch.zeros_like(right[k]))),
            as_array(right[k]),
            as_array(call.inputs[k]),
            _of_shape(UPSTREAM, call.cotangents, right[k]),
            _of_shape("the output", outputs, right[k]),
            _others(suspect, k),
            elsewhere=partial(_elsewhere, runner, suspect, k),
        )
    wrong = [k for k in call.tapped if k in found and not found[k].is_right]
    if len(outputs) == 1 and len(wrong) == 1:
        found[wrong[0]] = _with_slopes(runner, suspect, wrong[0], found[wrong[0]])
    return found


def _elsewhere(runner: CallRunner, suspect: Suspect, k: int) -> Iterator[tuple[str, Floats]]:
    """What would be right for something else, with words."""
    names = partial(_name, suspect.call)
    return ((words, as_array(each)) for words, each in right_elsewhere(runner, suspect.call, k, names))


def _positions(call: RecordedCall, parameters: Collection[torch.Tensor]) -> list[int]:
    """Where a Function is given these, each at the first place of its arguments that holds it."""
    if isinstance(call.owner, nn.Module):
        return []
    first: dict[int, int] = {}
    for k, tensor in enumerate(call.inputs):
        first.setdefault(id(tensor), k)
    known = {id(each) for each in parameters}
    return [k for key, k in first.items() if key in known and call.differentiable[k]]


def _of_parameters(runner: CallRunner, call: RecordedCall, positions: Sequence[int]) -> dict[int, torch.Tensor]:
    """The gradients that the call gives for parameters when it is run alone, with copies in their place."""
    copies = {id(each): each.detach().clone() for each in call.inputs}
    with_copies = replace(
        call,
        arguments=replaced(call.arguments, lambda tensor: copies.get(id(tensor), tensor)),
        inputs=[copies[id(each)] for each in call.inputs],
        returned={},
    )
    _, gradients = runner.outputs_and_gradients(with_copies)
    return {k: found for k in positions if (found := gradients[k]) is not None}


def where_in_words(suspect: Suspect, k: int) -> str:
    """An input of a call in words, such as "the input x of autograd.Function Swish in layer"."""
    call, module = suspect.call, _named(suspect.name)
    if isinstance(call.owner, nn.Module):
        return f"the input of {module}" if len(call.inputs) == 1 else f"input {k} of {module}"
    return f"the {_name(call, k)} of {function_name(call.owner)}{f' in {module}' if suspect.name else ''}"


def _name(call: RecordedCall, k: int) -> str:
    """An input by its name in a Function's signature, or its number, such as "input weight"."""
    path = next((path for path, tensor in tensors_in(call.arguments) if tensor is call.inputs[k]), f"[0][{k}]")
    return f"input {k if isinstance(call.owner, nn.Module) else input_name(call, path)}"


def as_array(tensor: torch.Tensor) -> Floats:
    """A real tensor as a float64 array of its shape."""
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return np.asarray(dense.double().numpy(force=True))


def _with_slopes(runner: CallRunner, suspect: Suspect, k: int, gradient: InputGradient) -> InputGradient:
    """The same, `elementwise` where the call is; a scalar is, where it is a sum over the entries of the input."""
    (upstream,) = suspect.call.cotangents
    if upstream is not None and upstream.numel() == 1 < gradient.right.size:
        each = np.full(gradient.right.shape, float(upstream))
        return replace(gradient, upstream={UPSTREAM: each}, elementwise=_is_sum(runner, suspect, k, gradient))
    return replace(gradient, elementwise=bool(gradient.upstream) and _is_elementwise(runner, suspect, k, gradient))


def _is_elementwise(runner: CallRunner, suspect: Suspect, k: int, gradient: InputGradient) -> bool:
    """Whether a factor on each entry of the upstream gradient is that factor on the entry of both gradients."""
    call = suspect.call
    (upstream,) = [each for each in call.cotangents if each is not None]
    factors = np.random.default_rng(0).uniform(0.5, 1.5, gradient.right.shape)
    weighted = replace(call, cotangents=[upstream * torch.from_numpy(factors)], returned={})
    right = right_gradients(runner, weighted, weighted.cotangents)[k]
    on_trial = runner.outputs_and_gradients(weighted)[1][k]
    return (
        on_trial is not None
        and _same(as_array(right), factors * gradient.right)
        and _same(as_array(on_trial), factors * gradient.on_trial)
    )


def _is_sum(runner: CallRunner, suspect: Suspect, k: int, gradient: InputGradient) -> bool:
    """Whether half of the entries of the input do not change the right gradient of the other half."""
    call, value = suspect.call, suspect.call.inputs[k]
    moved = np.random.default_rng(0).permutation(value.numel()).reshape(gradient.right.shape) % 2 == 0
    there = torch.where(torch.from_numpy(moved), MOVED * value, value)
    inputs = [there if each is value else each for each in call.inputs]
    right = as_array(right_gradients(runner, replace(call, inputs=inputs), call.cotangents)[k])
    return _same(right[~moved], gradient.right[~moved])


def _same(one: Floats, other: Floats) -> bool:
    return bool(np.allclose(one, other, rtol=1e-9, atol=1e-15))


def _of_shape(name: str, tensors: Sequence[torch.Tensor | None], like: torch.Tensor) -> dict[str, Floats]:
    """The tensors of the shape of `like`, as arrays by name."""
    fitting = [each for each in tensors if each is not None and each.shape == like.shape and not each.is_complex()]
    names = [name] if len(fitting) == 1 else [f"{name} {k}" for k in range(len(fitting))]
    return {each: as_array(tensor) for each, tensor in zip(names, fitting, strict=True)}


def _others(suspect: Suspect, k: int) -> dict[str, Floats]:
    """The other inputs of the shape of the k-th, and classes as one-hot rows of it, by name."""
    like = suspect.call.inputs[k]
    found: dict[str, Floats] = {}
    for j, other in enumerate(suspect.call.inputs):
        if other is not like and other.shape == like.shape and other.dtype == like.dtype:
            found[f"the {_name(suspect.call, j)}"] = as_array(other)
        elif other.dtype == torch.int64 and like.dim() > 1 and other.shape == like.shape[:1] + like.shape[2:]:
            found[f"the one-hot rows of {_name(suspect.call, j)}"] = _one_hot(other, like)
    return found


def _one_hot(classes: torch.Tensor, like: torch.Tensor) -> Floats:
    """1 at each class, along axis 1 of `like`; 0 for a class out of range, which a loss ignores."""
    numbers = torch.arange(like.shape[1]).reshape(1, -1, *[1] * (like.dim() - 2))
    return as_array(classes.cpu().unsqueeze(1) == numbers)


def _named(module: str) -> str:
    """The module's name in a sentence: a number of a Sequential says that it is one."""
    return f"module {module}" if module.rpartition(".")[2].isdigit() else module or "the model itself"
