"""θ: the model's distinct parameters as one flat vector, every coordinate of it with a name and an index."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.by_design import padding_coordinates
from torch_gradcheck.objective.perturbation import infinite_coordinates, real_view
from torch_gradcheck.objective.variables import Variable
from torch_gradcheck.reporting.close_names import close_names
from torch_gradcheck.reporting.facts import Role
from torch_gradcheck.reporting.words import counted, noun
from torch_gradcheck.torch_internals.modules import named_parameters, plain_names
from torch_gradcheck.torch_internals.tensors import is_wrapper


def flat_values(entry: ThetaEntry) -> Floats:
    """The numbers of a parameter in the order of its coordinates, shape (coordinates,), float64."""
    real = real_view(entry.parameter.detach().resolve_conj())
    numbers = real.to("cpu", torch.float64, copy=True)  # an array on its memory has torch refuse to let that go
    return np.asarray(numbers.numpy(), dtype=np.float64).ravel()


@dataclass(frozen=True)
class ThetaEntry:
    """One distinct parameter of θ.

    Attributes:
        name: the first name in the order of `named_parameters()`.
        aliases: the other names of a tied parameter.
        parameter: the caller's own object: a Parameter, or the tensor of a `Variable`.
        checked: whether its gradient is on trial: the patterns select it, and it is not frozen.
        frozen: whether `requires_grad` is false.
        padding: flat coordinates that are not tried: see `padding_coordinates`, and `infinite_coordinates`.
        own_dtype: the dtype with the caller; while the parameter is lent its dtype is that of the copy.
        role: a parameter, or what the `Variable` is.
    """

    name: str
    aliases: tuple[str, ...]
    parameter: torch.Tensor
    checked: bool
    frozen: bool
    padding: Indices
    own_dtype: torch.dtype = torch.float64
    role: Role = Role.PARAMETER

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter."""
        return tuple(self.parameter.shape)

    @property
    def is_complex(self) -> bool:
        """Whether its entries have an imaginary part."""
        return self.parameter.is_complex()

    @property
    def coordinates(self) -> int:
        """The number of real numbers in the parameter: a complex entry is two, its real and its imaginary part."""
        return self.parameter.numel() * (2 if self.is_complex else 1)

    @property
    def coordinates_on_trial(self) -> Indices:
        """The flat coordinates that are tried, in order."""
        return np.setdiff1d(np.arange(self.coordinates, dtype=np.int64), self.padding, assume_unique=True)

    def locate(self, coordinate: int) -> tuple[tuple[int, ...], str | None]:
        """Index in the parameter's shape, and "real" or "imag" for a complex one, of a flat coordinate."""
        entry, part = (divmod(coordinate, 2)) if self.is_complex else (coordinate, None)
        index = tuple(int(i) for i in np.unravel_index(entry, self.shape)) if self.shape else ()
        return index, None if part is None else ("real", "imag")[part]


class Theta(Sequence[ThetaEntry]):
    """The distinct parameters in the order of `named_parameters()`."""

    def __init__(self, entries: Sequence[ThetaEntry]) -> None:
        self._entries = tuple(entries)

    def __getitem__(self, position: int) -> ThetaEntry:  # type: ignore[override]
        return self._entries[position]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[ThetaEntry]:
        return iter(self._entries)

    def without(self, variables: Sequence[Variable]) -> Theta:
        """The same but for these; parameters stay."""
        left_out = {id(each.tensor) for each in variables}
        kept = [each for each in self._entries if each.role is Role.PARAMETER or id(each.parameter) not in left_out]
        return Theta(kept)

    @property
    def checked(self) -> list[int]:
        """Positions of the parameters whose gradient is on trial."""
        return [position for position, entry in enumerate(self._entries) if entry.checked]

    @property
    def coordinates(self) -> int:
        """The length of the flat vector θ (checked parameters only)."""
        return sum(self._entries[position].coordinates for position in self.checked)

    def locate(self, coordinate: int) -> tuple[str, tuple[int, ...], str | None]:
        """Parameter name, index and complex part of a coordinate of the flat vector θ.

        Raises:
            IndexError: if θ has no such coordinate.
        """
        offset = coordinate
        for position in self.checked:
            entry = self._entries[position]
            if 0 <= offset < entry.coordinates:
                return (entry.name, *entry.locate(offset))
            offset -= entry.coordinates
        raise IndexError(f"θ has {self.coordinates} coordinates, there is no coordinate {coordinate}")


def theta_of(
    model: nn.Module,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    variables: Sequence[Variable] = (),
) -> Theta:
    """The parameters of `model`, tied ones once, then the variables: those that the glob patterns select.

    Raises:
        InvalidRequestError: no parameters, none that requires a gradient, none selected, a pattern that matches
            nothing, or a parameter that holds no ordinary numbers (uninitialised, meta, sparse, a tensor subclass).
    """
    selected = check_selection(model, include, exclude, variables)
    roles = _roles(model, variables)
    return Theta([_entry(model, parameter, names, roles[id(parameter)]) for parameter, names in selected])


def check_selection(
    model: nn.Module,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    variables: Sequence[Variable] = (),
) -> list[tuple[torch.Tensor, list[str]]]:
    """The distinct parameters and variables that the patterns select, with all their names; raises as `theta_of`.

    To be called before the model is lent.
    """
    include, exclude = ([*map(plain_names(model), patterns)] for patterns in (include, exclude))
    names = _names(model, variables)
    if not names:
        raise InvalidRequestError(
            f"model ({type(model).__name__}) has no parameters, and no tensor that it is called with requires a "
            "gradient: there is no gradient to check. Give the model first, check_module(model, loss_fn, batch); "
            "what has no parameters is checked by check_function(function, inputs)."
        )
    roles = _roles(model, variables)
    every_name = [name for group in names.values() for name in group]
    _check_patterns("include", include, every_name, roles)
    _check_patterns("exclude", exclude, every_name, roles)
    for parameter, group in names.items():
        _check_is_ordinary(group[0], parameter)
    selected = [
        (parameter, group)
        for parameter, group in names.items()
        if (not include or matches(group, include)) and not matches(group, exclude)
    ]
    _check_something_to_do(selected, [roles[id(parameter)] for parameter in names], include, exclude)
    return selected


def _names(model: nn.Module, variables: Sequence[Variable]) -> dict[torch.Tensor, list[str]]:
    """All names of each distinct tensor: of the parameters, then of the variables, no name twice."""
    names: dict[torch.Tensor, list[str]] = {}
    for name, parameter in named_parameters(model):
        names.setdefault(parameter, []).append(name)
    taken = {name for group in names.values() for name in group}
    for each in variables:
        for name in each.names:
            names.setdefault(each.tensor, []).append(_free_name(name, each.role, taken))
            taken.add(names[each.tensor][-1])
    return names


def _free_name(name: str, role: Role, taken: Collection[str]) -> str:
    """The name, with words or a number that set it apart where a parameter, or another place, has it already."""
    number, free = 1, name
    while free in taken:
        free = f"{name} ({noun([role])}{f' {number}' if number > 1 else ''})"
        number += 1
    return free


def _roles(model: nn.Module, variables: Sequence[Variable]) -> dict[int, Role]:
    """What each tensor of θ is to J, by its id."""
    roles = {id(each.tensor): each.role for each in variables}
    return roles | {id(parameter): Role.PARAMETER for _, parameter in named_parameters(model)}


def _entry(model: nn.Module, parameter: torch.Tensor, names: list[str], role: Role) -> ThetaEntry:
    return ThetaEntry(
        name=names[0],
        aliases=tuple(names[1:]),
        parameter=parameter,
        checked=parameter.requires_grad,
        frozen=not parameter.requires_grad,
        padding=np.union1d(padding_coordinates(model, parameter), infinite_coordinates(parameter)),
        own_dtype=parameter.dtype,
        role=role,
    )


def matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether a pattern matches a name; `[0]` is one of the characters in it, or stands for itself: `batch[0]`."""
    readings = [reading for pattern in patterns for reading in (pattern, pattern.replace("[", "[[]"))]
    return bool([name for name in names for reading in readings if fnmatchcase(name, reading)])


def _check_patterns(argument: str, patterns: Sequence[str], names: Sequence[str], roles: Mapping[int, Role]) -> None:
    for pattern in patterns:
        if not matches(names, [pattern]):
            hint = close_names(pattern, names)
            others = [f" and no {noun([role])}" for role in dict.fromkeys(roles.values()) if role is not Role.PARAMETER]
            outputs = " Outputs, beside a reference, are always compared." if pattern.startswith("output") else ""
            raise InvalidRequestError(
                f"{argument}={pattern!r} matches no parameter of the model{''.join(others)}; {hint}.{outputs}"
            )


def _check_is_ordinary(name: str, parameter: torch.Tensor) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise InvalidRequestError(
            f"parameter {name!r} is not initialised yet (a lazy module): call the model once on a batch first."
        )
    if parameter.is_meta:
        raise InvalidRequestError(
            f"parameter {name!r} is on the meta device and holds no numbers: "
            "materialise the model first, for example with model.to_empty(device='cpu') and an initialisation."
        )
    if parameter.layout is not torch.strided or is_wrapper(parameter):
        raise InvalidRequestError(
            f"parameter {name!r} is a {type(parameter.data).__name__} of layout {parameter.layout}: "
            "only ordinary dense tensors can be perturbed; check the model before it is sharded, quantised or pruned."
        )


def _check_something_to_do(
    selected: Sequence[tuple[torch.Tensor, list[str]]],
    roles: Sequence[Role],
    include: Sequence[str],
    exclude: Sequence[str],
) -> None:
    if not selected:
        raise InvalidRequestError(
            f"include={list(include) or None} and exclude={list(exclude)} leave none of the {counted(roles)}: "
            "name some, or leave both out."
        )
    if not [parameter for parameter, _ in selected if parameter.requires_grad]:
        names = ", ".join(group[0] for _, group in selected[:5])
        raise InvalidRequestError(
            f"none of the {len(selected)} selected parameters requires a gradient ({names}"
            f"{', ...' if len(selected) > 5 else ''}): call requires_grad_() on what is to be checked."
        )
