"""`vmap`: where vmap works on forward and backward, it gives what a loop gives.

The loop runs the function on one example after the other: the arguments as they are, and moved a little. vmap runs on
both at once: stacked in dimension 0, in the last dimension with one argument at a time that both examples share, and
each argument in a dimension of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.autograd import Function

from torch_gradcheck.contract.comparison import difference, size_of_terms
from torch_gradcheck.contract.functions import functions_of
from torch_gradcheck.contract.kinks import nearness, parting
from torch_gradcheck.contract.outcome import SPARSE, UNREPEATABLE, Raised, attempted, failed, not_applicable, passed
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.contract.vmap_ways import Way, ways
from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.objective.function_outputs import inner
from torch_gradcheck.objective.perturbation import RandomDirection
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.autograd import (
    can_be_batched,
    has_vmap_rule,
    node_of,
    nodes_from,
    pulled_back,
    shares_among_tied,
)
from torch_gradcheck.torch_internals.custom_ops import custom_op_of, name_of_function
from torch_gradcheck.torch_internals.dispatch import vmap_or_nothing, without_rule_of_vmap

NAME = "vmap"

EXAMPLES = 2
"""The number of examples: a mistake of batching shows in two that differ."""

MOVED = 1e-2
"""How far the second example is from the first, relative to the size of every number."""

UNITS = 8
"""In a low precision it is at least so many units in the last place away."""

AT_A_KINK = "not tried, being at a kink"


def vmap(trial: Trial) -> ContractEntry:
    """Ways to batch the arguments, forward and backward; then the backward alone, given two gradients at once."""
    if trial.draws:
        return not_applicable(NAME, "the function draws random numbers, which vmap does in an order of its own")
    if not trial.is_repeatable:
        return not_applicable(NAME, UNREPEATABLE)
    if not trial.arguments:
        return not_applicable(NAME, "there is no argument to batch")
    if trial.call.patterns:
        return not_applicable(NAME, SPARSE)
    with vmap_or_nothing(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _tried(trial)


def _tried(trial: Trial) -> ContractEntry:
    has_gradients = any(gradient is not None for gradient in trial.first.gradients)
    of_backward = attempted(lambda: _wrong_beside(trial, lambda: _wrong_backward(trial))) if has_gradients else ""
    if of_backward and not isinstance(of_backward, Raised):
        return failed(NAME, f"vmap of the backward{trial.backwards}: {of_backward}")
    without = [name_of_function(function) for function in functions_of(trial) if not _can_be_batched(function)]
    if without:
        return not_applicable(NAME, f"vmap has no rule for {listed(without)}")
    notes = []
    for number, way in enumerate(ways(trial.names, trial.arguments)):
        found = attempted(lambda: _wrong_beside(trial, lambda: _wrong(trial, way)))  # noqa: B023  # called at once
        if isinstance(found, Raised) and not number:
            return not_applicable(NAME, _why(found))
        if isinstance(found, Raised) and _is_mistake(found, trial):
            return failed(NAME, f"vmap in dimension 0 works; with {way.words}, it raises {found}")
        if isinstance(found, Raised):
            notes.append(f"with {way.words}: {_why(found)}")
        elif found is None:
            notes.append(f"with {way.words}: {AT_A_KINK}")
        elif found:
            return failed(NAME, f"vmap with {way.words}: {found}")
    notes += ["of the forward alone: the backward gives no gradient"] * (not has_gradients)
    return passed(NAME, "; ".join([*notes, *_on_backward(of_backward)]))


def _on_backward(found: Raised | str | None) -> list[str]:
    """The note on a vmap of the backward that could not be tried; none where it is right."""
    if isinstance(found, Raised):
        return [f"of the backward: {_why(found)}"]
    return [f"of the backward: {AT_A_KINK}"] if found is None else []


def _wrong_beside(trial: Trial, tried: Callable[[], str]) -> str | None:
    """What is wrong at θ and right beside it, too; "" for nothing, None where beside θ nothing can be tried.

    Where θ is at a tie, torch shares the gradient among the tied, and its rules of vmap give it to one of them. Entries
    that are rounded, with the gradient of the identity, are tied beside θ as well.
    """
    wrong = tried()
    for distance in (nearness(trial.dtype), MOVED) if wrong else ():
        with trial.moved(parting(trial.tensors, trial.seed), distance):
            there = attempted(tried)
            is_tied = bool(there) and attempted(lambda: _has_ties(trial))
        if isinstance(there, Raised) or is_tied:
            return None
        if not there:
            return ""
    return wrong


def _has_ties(trial: Trial) -> bool:
    """Whether the function shares a gradient among tied entries in one of the examples."""
    with torch.enable_grad(), trial.regime():
        outputs = [y for example in _examples(trial) for y in trial.outputs([x.requires_grad_() for x in example])]
        return any(shares_among_tied(node) for node in nodes_from(map(node_of, outputs)))


def _wrong(trial: Trial, way: Way) -> str:
    """How outputs and gradients of vmap differ from those of a loop; "" where they do not."""
    examples = _sharing(_examples(trial), way)
    stacked = [_stacked(tensors, dim) for tensors, dim in zip(zip(*examples, strict=True), way.dims, strict=True)]

    def batched(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(trial.outputs(tensors))

    with torch.enable_grad(), trial.regime():
        outputs = torch.vmap(batched, in_dims=tuple(way.dims), randomness="error")(*stacked)
        cotangents = trial.cotangents(outputs)
        gradients = _gradients(trial, outputs, cotangents, stacked)
    loop = [_run(trial, example, [v[k] for v in cotangents]) for k, example in enumerate(examples)]
    return _compared(trial, way, [y.detach() for y in outputs], gradients, loop)


@dataclass(frozen=True)
class _Run:
    outputs: Sequence[torch.Tensor]
    gradients: Sequence[torch.Tensor | None]


def _run(trial: Trial, example: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]) -> _Run:
    leaves = [tensor.clone().requires_grad_() for tensor in example]
    with torch.enable_grad(), trial.regime():
        outputs = trial.outputs(leaves)
        gradients = _gradients(trial, outputs, cotangents, leaves)
    return _Run([y.detach() for y in outputs], gradients)


def _gradients(
    trial: Trial, outputs: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    terms = [inner(v, y) for v, y in zip(cotangents, outputs, strict=True) if y.requires_grad]
    return gradients_of(terms, [*leaves, *objects_of(trial.parameters)])


def _examples(trial: Trial) -> list[list[torch.Tensor]]:
    first = [tensor.detach().clone() for tensor in trial.arguments]
    with RandomDirection(trial.arguments, trial.seed).at(max(MOVED, UNITS * epsilon(trial.dtype))):
        return [first, [tensor.detach().clone() for tensor in trial.arguments]]


def _sharing(examples: Sequence[Sequence[torch.Tensor]], way: Way) -> list[list[torch.Tensor]]:
    """The examples with the arguments of the first where all share one."""
    first = examples[0]
    return [[one if d is None else x for one, x, d in zip(first, each, way.dims, strict=True)] for each in examples]


def _stacked(tensors: Sequence[torch.Tensor], dim: int | None) -> torch.Tensor:
    return (tensors[0].clone() if dim is None else torch.stack(list(tensors), dim)).requires_grad_()


def _compared(
    trial: Trial,
    way: Way,
    outputs: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor | None],
    loop: Sequence[_Run],
) -> str:
    words: list[str] = []
    for position, output in enumerate(outputs):
        expected = torch.stack([run.outputs[position] for run in loop])
        found = _differs(trial, trial.first.names[position], output, expected)
        words.append(found and f"{found}{trial.forwards}")
    dims = [*way.dims, *[None for _ in trial.parameters]]
    for position, (name, dim) in enumerate(zip(trial.all_names, dims, strict=True)):
        each = [run.gradients[position] for run in loop]
        terms = size_of_terms(each) if dim is None else 0.0
        found = _differs(trial, f"the gradient of {name}", gradients[position], _joined(each, dim), terms)
        words.append(found and f"{found}{trial.backwards}")
    return next(filter(None, words), "")


def _joined(gradients: Sequence[torch.Tensor | None], dim: int | None) -> torch.Tensor | None:
    """The gradients of all examples, stacked, or added up where the examples share a tensor."""
    some = [gradient for gradient in gradients if gradient is not None]
    if not some:
        return None
    every = [torch.zeros_like(some[0]) if gradient is None else gradient for gradient in gradients]
    return torch.stack(every).sum(0) if dim is None else torch.stack(every, dim)


def _differs(
    trial: Trial, name: str, found: torch.Tensor | None, expected: torch.Tensor | None, terms: float = 0.0
) -> str:
    allowed = trial.allowance.of(expected, max(trial.spreads, default=0.0), name, terms)
    words = difference(found, expected, allowed)
    return words and f"{name} {words} as in a loop"


def _wrong_backward(trial: Trial) -> str:
    """How the gradients for two v at once differ from those for one after the other; "" where they do not."""
    with torch.enable_grad(), trial.regime():
        leaves = [*trial.fresh(), *objects_of(trial.parameters)]
        outputs = [y for y in trial.outputs(leaves[: len(trial.arguments)]) if y.requires_grad]
        pairs = [torch.stack([v, v.flip(list(range(v.dim()))) * -0.5]) for v in trial.cotangents(outputs)]

        def gradients(*cotangents: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple([found for found in pulled_back(outputs, leaves, cotangents) if found is not None])

        together = torch.vmap(gradients)(*[pair.clone() for pair in pairs])  # a backward may write to them
        loop = [gradients(*[pair[k].clone() for pair in pairs]) for k in range(EXAMPLES)]
    expected = [torch.stack(list(each)) for each in zip(*loop, strict=True)]
    words = [_differs(trial, "a gradient", *each) for each in zip(together, expected, strict=True)]
    return next(filter(None, words), "")


def _is_mistake(raised: Raised, trial: Trial) -> bool:
    """Whether a rule of the user's has raised, and not to say that it has not got this far."""
    return not isinstance(raised.error, NotImplementedError) and any(map(has_vmap_rule, functions_of(trial)))


def _why(raised: Raised) -> str:
    operation = without_rule_of_vmap(raised.error)
    return f"vmap raises {raised}" if operation is None else f"vmap has no rule for {operation}: it would run a loop"


def _can_be_batched(function: type[Function]) -> bool:
    """What there is of an operator of torch.library, its call tells."""
    return custom_op_of(function) is not None or can_be_batched(function)
