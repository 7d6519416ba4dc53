"""Where the rules meet: how one operation acts on tensors of which some are touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from torch_gradcheck.engines.traced.rules.perturbed import Perturbed


class OperationCall:
    """One operation to evaluate for K perturbations.

    Attributes:
        func: the operation.
        args, kwargs: its arguments; tensors that are touched come as `Touched`, others as they are.
        bases: what it returned at θ, tensor by tensor.
        count: K.
    """

    __slots__ = ("args", "bases", "count", "func", "kwargs")

    def __init__(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], bases: list[Tensor], count: int
    ) -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.bases = bases
        self.count = count

    @property
    def base(self) -> Tensor:
        """Its only or first result at θ."""
        return self.bases[0]

    def arg(self, position: int, name: str = "", default: Any = None) -> Any:
        """An argument wherever it was given."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)


class NoRuleError(Exception):
    """A rule does not cover this combination of arguments; the general one does."""


Results = list[Perturbed | None]
"""One entry for every tensor the operation returns; None where it stays at its value at θ."""

Rule = Callable[[OperationCall], Results]

RULES: dict[Any, Rule] = {}


def rule(*overloads: Any) -> Callable[[Rule], Rule]:
    """Register a rule for these operations."""

    def register(function: Rule) -> Rule:
        for overload in overloads:
            RULES[overload] = function
        return function

    return register


def perturbed_only(call: OperationCall, *positions: int) -> None:
    """Leave calls to the general rule where any other argument than these is touched."""
    for position, given in enumerate(call.args):
        if position not in positions and any_perturbed(given):
            raise NoRuleError
    if any(any_perturbed(given) for given in call.kwargs.values()):
        raise NoRuleError


def any_perturbed(tree: Any) -> bool:
    """Whether a touched tensor is among nested arguments."""
    if isinstance(tree, (tuple, list)):
        return any(any_perturbed(item) for item in tree)
    return isinstance(tree, Perturbed)


def map_tensors(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The same nesting with the function applied to every tensor, touched or not."""
    if isinstance(tree, (Tensor, Perturbed)):
        return function(tree)
    if type(tree) is tuple or type(tree) is list:
        return type(tree)(map_tensors(item, function) for item in tree)
    return tree


def all_perturbed(tree: Any) -> list[Perturbed]:
    """The touched tensors among nested arguments."""
    if isinstance(tree, Perturbed):
        return [tree]
    if isinstance(tree, (tuple, list)):
        return [x for item in tree for x in all_perturbed(item)]
    return []
