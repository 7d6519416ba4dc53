"""Which tensors of a reference stand for which of the candidate, under one name, and the values that they are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from torch_gradcheck.against_reference.runs.placing import ANYWHERE, Place
from torch_gradcheck.borrowing.captures import captures_of
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.function_loss import FunctionModule
from torch_gradcheck.objective.loss import Loss
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.dtypes import is_inexact
from torch_gradcheck.reporting.close_names import close_names
from torch_gradcheck.reporting.facts import Role
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.modules import named_buffers, named_parameters, plain_names
from torch_gradcheck.torch_internals.tensors import storage_key

NAMED = 5
"""So many names are listed in an error."""

Values = Mapping[torch.Tensor, torch.Tensor]
"""Tensor of the reference → the numbers that it has while it is lent, in a dtype of their own."""


@dataclass(frozen=True)
class Counterparts:
    """The tensors of two modules with the same names of parameters; made by `counterparts_of`.

    Attributes:
        candidate: the module whose values both have.
        reference: the module that is given them.
        moved: tensors of the candidate whose values are others: of a check away from its own θ.
        place: where the reference is computed.
    """

    candidate: nn.Module
    reference: nn.Module
    moved: Values
    place: Place = ANYWHERE

    @cached_property
    def exact(self) -> Values:
        """The candidate's values for all that has the same name and shape, in the dtype of the candidate.

        What the candidate has not is where the reference is computed, as after `reference.to(device)`.
        """
        return {**self._placed, **self._given}

    @cached_property
    def rounded(self) -> Values:
        """The same, and what the candidate has not, in the dtype that `reference.to(dtype)` would have it in."""
        dtypes, given = self._dtypes, {storage_key(each) for each in self._given}  # views of these have their values
        others = {
            each: self._placed.get(each, each).to(dtypes[each.dtype])
            for _, each in _tensors(self.reference)
            if is_inexact(each) and each.dtype in dtypes and storage_key(each) not in given
        }
        return {**self._placed, **others, **self._given}

    @cached_property
    def _given(self) -> Values:
        own = {**dict(named_buffers(self.candidate)), **dict(named_parameters(self.candidate))}
        pairs = [(each, own.get(name)) for name, each in _tensors(self.reference)]
        return {
            **self.moved,
            **{each: self.moved.get(one, one) for each, one in pairs if one is not None and one.shape == each.shape},
        }

    @cached_property
    def _placed(self) -> Values:
        """What the candidate has not, where it is on another device than the reference is computed on."""
        return self.place.moved([each for _, each in _tensors(self.reference) if each not in self._given])

    def start(self, values: Values, random: RandomState | None = None) -> Start:
        """What a loan of the reference starts from.

        Args:
            values: `exact` or `rounded`.
            random: the state of the random generators; None for that of the seed.
        """
        return Start(random, values, self.place.of_loans)

    @property
    def _dtypes(self) -> Mapping[torch.dtype, torch.dtype]:
        """Each dtype of the reference's parameters with that of the candidate's, where it is one."""
        found: dict[torch.dtype, set[torch.dtype]] = {}
        for _, each in named_parameters(self.reference):
            found.setdefault(each.dtype, set()).add(self._given[each].dtype)
        return {own: next(iter(theirs)) for own, theirs in found.items() if len(theirs) == 1}


def counterparts_of(
    candidate: nn.Module, reference: nn.Module, moved: Values | None = None, place: Place = ANYWHERE
) -> Counterparts:
    """The tensors of both under their names.

    Raises:
        InvalidRequestError: names or shapes of parameters differ, or which of them are tied, or what the candidate
            trains is frozen in the reference.
    """
    own, theirs = dict(named_parameters(candidate)), dict(named_parameters(reference))
    _check_names(list(own), list(theirs))
    _check_shapes(own, theirs)
    _check_ties(own, theirs)
    _check_trained(own, theirs)
    return Counterparts(candidate, reference, moved or {}, place)


def check_training_flags(candidate: nn.Module, reference: nn.Module) -> None:
    """Raises InvalidRequestError where modules of one name are in different modes, and each keeps its own."""
    if isinstance(candidate, FunctionModule) or isinstance(reference, FunctionModule):
        return
    own, theirs = _training_flags(candidate), _training_flags(reference)
    differ = [name or "the model itself" for name, training in own.items() if theirs.get(name, training) != training]
    if differ:
        raise InvalidRequestError(
            f"each module keeps its own mode, and the training flags of candidate and reference differ: "
            f"{listed(differ, NAMED)}. Call train() or eval() on both."
        )


def _training_flags(model: nn.Module) -> dict[str, bool]:
    plain = plain_names(model)
    return {plain(name): module.training for name, module in model.named_modules()}


def _tensors(module: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    return [*named_parameters(module), *named_buffers(module)]


def _check_names(own: Sequence[str], theirs: Sequence[str]) -> None:
    lacking = [name for name in own if name not in theirs]
    extra = [name for name in theirs if name not in own]
    if lacking or extra:
        raise InvalidRequestError(
            "model and reference must have parameters of the same names: "
            + "; ".join([*_missing("reference", lacking, extra), *_missing("model", extra, lacking)])
            + ". Name the modules of one as they are in the other."
        )


def _missing(where: str, names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Words on names that one side has not, each with those of the other side that are like it; empty for none."""
    with_close = [f"{name} ({close_names(name, others)})" if others else name for name in names]
    return [f"{where} has no {listed(with_close, NAMED)}"] if names else []


def _check_shapes(own: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    shapes = {name: (tuple(each.shape), tuple(theirs[name].shape)) for name, each in own.items()}
    differ = [f"{name} ({one} in model, {other} in reference)" for name, (one, other) in shapes.items() if one != other]
    if differ:
        raise InvalidRequestError(
            f"model and reference must have parameters of the same shapes: {listed(differ, NAMED)} differ."
        )


def _check_ties(own: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """Raises where one parameter under two names is two parameters on the other side: their gradients are others."""
    tied, others = _groups(own), _groups(theirs)
    for one, other, where, elsewhere in ((tied, others, "model", "reference"), (others, tied, "reference", "model")):
        differ = [group for group in one if group not in other and len(group) > 1]
        if differ:
            raise InvalidRequestError(
                f"{listed(sorted(differ[0]), NAMED)} are one tied parameter in {where} and not in {elsewhere}: tie "
                "them in both, or in neither."
            )


def _groups(named: Mapping[str, torch.Tensor]) -> list[frozenset[str]]:
    names: dict[torch.Tensor, list[str]] = {}
    for name, each in named.items():
        names.setdefault(each, []).append(name)
    return [frozenset(group) for group in names.values()]


def _check_trained(own: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    frozen = [name for name, each in own.items() if each.requires_grad and not theirs[name].requires_grad]
    if frozen:
        raise InvalidRequestError(
            f"reference has no gradient of {listed(frozen, NAMED)}: requires_grad is false there, and true in model. "
            "Call reference.requires_grad_()."
        )


def parts_of_gradients(candidate: Theta, reference: Theta, loss: Loss) -> list[list[torch.Tensor]]:
    """For each tensor of the candidate that is checked the reference's tensors whose gradients add up to the right one.

    That is its counterpart: parameters by name, others by place. A loss function that reads a parameter of the
    candidate itself, for weight decay, reads it beside the reference, too: the gradient that it leaves there belongs
    to the same row.

    Args:
        candidate: θ of the candidate.
        reference: θ of the reference.
        loss: of the reference.
    """
    parameters = {name: each.parameter for each in reference for name in (each.name, *each.aliases)}
    variables = [each.parameter for each in reference if each.role is not Role.PARAMETER]
    of_candidate = [each for each in candidate if each.role is not Role.PARAMETER]
    places = {id(each): tensor for each, tensor in zip(of_candidate, variables, strict=True)}
    read = {id(each) for each in captures_of(*loss.holders).tensors.values()}
    found = []
    for entry in [candidate[position] for position in candidate.checked]:
        counterpart = parameters[entry.name] if entry.role is Role.PARAMETER else places[id(entry)]
        also = [entry.parameter] if id(entry.parameter) in read and entry.parameter is not counterpart else []
        found.append([counterpart, *also])
    return found
