"""The user's loss as an object: what it holds on to, and J as a function of nothing in a given precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from torch_gradcheck.borrowing.captures import captures_of
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.batch import BatchCopy
from torch_gradcheck.objective.batch_kinds import refuse_no_batch, refuse_without_numbers
from torch_gradcheck.objective.given import Given, in_words, of_batch
from torch_gradcheck.objective.refusals import raise_any, refused_output
from torch_gradcheck.objective.signatures import counted, misfit
from torch_gradcheck.objective.variables import (
    Variable,
    captured_by,
    distinct,
    not_perturbed_in,
    objects_of,
    variables_in,
)
from torch_gradcheck.reporting.facts import Role
from torch_gradcheck.reporting.words import LOSS_WORDS, LossWords, listed

Compute = Callable[[], Any]
"""Computes the loss of a lent model; takes no argument."""

NOTHING: Any = object()
"""Stands for a batch that was not given."""


class Loss(Protocol):
    """A loss as the user gave it, before its model is lent."""

    @property
    def holders(self) -> Sequence[Any]:
        """The user's functions, and whatever else J reaches besides the model: lent or set aside with it."""

    @property
    def variables(self) -> Sequence[Variable]:
        """The tensors besides the model's parameters that are on trial; their objects are among the holders."""

    @property
    def words(self) -> LossWords:
        """What a report calls the code that computes it."""

    @property
    def given(self) -> Given:
        """What the caller gave, as a refusal tells of it."""

    def at(self, dtype: torch.dtype | None) -> Compute:
        """J as a function of nothing, the batch copied into `dtype` (None: each tensor in its own)."""


@dataclass(frozen=True)
class ModuleLoss:
    """`loss_fn(model(inputs), *targets)`, the model called on the batch as `check_module` documents.

    A tuple or list is `(inputs, *targets)`; a mapping is the model's keyword arguments; anything else its one input.
    Inputs that are themselves a tuple or list are positional arguments, a mapping keyword arguments.
    """

    words = LOSS_WORDS

    model: nn.Module
    loss_fn: Callable[..., Any]
    batch: Any

    def __post_init__(self) -> None:
        refuse_no_batch(self.batch)

    @property
    def given(self) -> Given:
        """The loss function, and the batch."""
        return of_batch(self.loss_fn, self.batch)

    def with_inputs(self, inputs: Sequence[Any] | Mapping[str, Any]) -> ModuleLoss:
        """The same, with these arguments of the model in place of the batch's, and the targets of the batch."""
        targets = self.batch[1:] if _is_sequence(self.batch) else ()
        return replace(self, batch=(inputs, *targets))

    @cached_property
    def holders(self) -> list[Any]:
        """The loss function, the random generators in the batch and its variables; all else in it is copied."""
        return [self.loss_fn, *captures_of(self.batch).generators.values(), *objects_of(self.variables)]

    @cached_property
    def variables(self) -> list[Variable]:
        """The tensors of the batch that require a gradient: `batch`, `batch[0]`, `batch['x']`."""
        return variables_in("batch", self.batch, Role.INPUT)

    def at(self, dtype: torch.dtype | None) -> Compute:
        """See `Loss.at`."""
        refuse_without_numbers(self.batch)
        copy = BatchCopy(self.batch, dtype, self.variables)

        def compute() -> Any:
            fresh = copy.fresh()
            inputs, targets = (fresh[0], fresh[1:]) if _is_sequence(fresh) else (fresh, ())
            output = _called(self.model, inputs)
            try:
                return _fitting("loss_fn", self.loss_fn, (output, *targets), {})
            except (TypeError, AttributeError) as error:
                raise_any(refused_output(error, output, self.given), error)
                raise

        return compute


@dataclass(frozen=True)
class ClosureLoss:
    """`closure()`, or `closure(batch)` where there is a batch."""

    words = LOSS_WORDS

    closure: Callable[..., Any]
    batch: Any = NOTHING

    @property
    def given(self) -> Given:
        """The closure, and its batch where there is one."""
        return Given("closure", self.closure, () if self.batch is NOTHING else [("batch", self.batch)])

    @property
    def holders(self) -> list[Any]:
        """The closure and the variables of its batch."""
        return [self.closure, *objects_of(self.variables)]

    @cached_property
    def variables(self) -> list[Variable]:
        """The tensors of the batch that require a gradient, and those that the closure captures: `x`, `self.z`."""
        return distinct([*variables_in("batch", self.batch, Role.INPUT), *captured_by(self.closure)])

    def at(self, dtype: torch.dtype | None) -> Compute:
        """See `Loss.at`."""
        if self.batch is NOTHING:
            return self.closure
        copy = BatchCopy(self.batch, dtype, self.variables)
        return lambda: self.closure(copy.fresh())


@dataclass(frozen=True)
class MeanLoss:
    """Σ wᵢ Jᵢ / divisor over several losses Jᵢ: J of a training step that accumulates over batches.

    Attributes:
        losses: one a batch.
        divisor: what their weighted sum is divided by: the sum of the weights, for a mean.
        starts: for each batch the random state its forward starts from; empty: each starts where the last one ended.
        weights: wᵢ, positive numbers; empty: 1 each.
    """

    words = LOSS_WORDS

    losses: Sequence[Loss]
    divisor: float
    starts: Sequence[Start] = ()
    weights: Sequence[float] = ()

    @property
    def _of_one(self) -> float:
        """What a single loss is multiplied by."""
        return (self.weights[0] if self.weights else 1) / self.divisor

    @property
    def given(self) -> Given:
        """The function of all the losses, and the first batch."""
        return self.losses[0].given

    @property
    def holders(self) -> list[Any]:
        """The holders of all the losses."""
        return [holder for loss in self.losses for holder in loss.holders]

    @property
    def variables(self) -> list[Variable]:
        """Those of the only loss; of several batches those of all, as `batches[1][0]`."""
        if len(self.losses) == 1:
            return list(self.losses[0].variables)
        return distinct([_of_batch(k, each) for k, loss in enumerate(self.losses) for each in loss.variables])

    def at(self, dtype: torch.dtype | None) -> Compute:
        """See `Loss.at`."""
        computes = [loss.at(dtype) for loss in self.losses]

        def mean() -> Any:
            total: Any = 0
            for position, compute in enumerate(computes):
                if position and self.starts:
                    self.starts[position].restore()
                total = total + (compute() * (self.weights[position] / self.divisor) if self.weights else compute())
            return total if self.weights else total / self.divisor

        return computes[0] if len(computes) == 1 and self._of_one == 1 else mean


def on_not_perturbed(loss: Loss) -> str:
    """The note on tensors of the batch that require a gradient and are not on trial; "" where there are none."""
    names = _not_perturbed(loss)
    if not names:
        return ""
    return f"not on trial, since only ordinary dense tensors can be perturbed: {listed(names)}"


def _not_perturbed(loss: Loss) -> list[str]:
    if isinstance(loss, MeanLoss):
        return [name for each in loss.losses for name in _not_perturbed(each)]
    return not_perturbed_in("batch", loss.batch) if isinstance(loss, ModuleLoss | ClosureLoss) else []


def _of_batch(number: int, variable: Variable) -> Variable:
    """A variable of one of several batches, its places in the batch named `batches[number]…`."""
    if variable.role is not Role.INPUT:
        return variable
    first, *others = [f"batches[{number}]{name.removeprefix('batch')}" for name in variable.names]
    return replace(variable, name=first, aliases=tuple(others))


def _called(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        if not all(isinstance(name, str) for name in inputs):
            raise InvalidRequestError(
                f"batch has keys that are no names of arguments: {list(inputs)}. A mapping holds the model's "
                "keyword arguments."
            )
        return _fitting("model", model, (), inputs)
    return _fitting("model", model, tuple(inputs) if _is_sequence(inputs) else (inputs,), {})


def _fitting(name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of the call; raises `InvalidRequestError` where the arguments do not fit the signature."""
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        why = misfit(function, args, kwargs)
        if not why:
            raise
        raise InvalidRequestError(
            f"batch does not fit {name}: it is called with {counted(args, kwargs)}, and {in_words(function)} {why}. "
            f"{_hint(name, args)}A batch is (inputs, *targets); inputs that are a tuple or list are positional "
            "arguments of the model, a mapping its keyword arguments."
        ) from error


def _hint(name: str, args: tuple[Any, ...]) -> str:
    """What was probably forgotten, as a sentence; "" where it cannot be told."""
    if name == "loss_fn" and len(args) == 1:
        return "This batch is the model's input alone and brings no targets: give (inputs, targets). "
    if name == "model" and args and all(isinstance(each, list | int | float) for each in args):
        return "These inputs are lists of numbers: give torch.tensor(inputs). "
    return ""


def _is_sequence(value: Any) -> bool:
    """Whether `value` lists several things; a PackedSequence is a tuple to Python but one input to a model."""
    return isinstance(value, tuple | list) and not isinstance(value, nn.utils.rnn.PackedSequence)
