"""The rules by operation. A rule evaluates one operation on arguments of which some are perturbed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from torch_gradcheck.engines.traced.rules.perturbed import Perturbed
from torch_gradcheck.torch_internals.operations import overload


class OperationCall:
    """One operation to evaluate for K perturbations.

    Attributes:
        func: the operation.
        args, kwargs: its arguments; a perturbed tensor is a `Perturbed`, any other a `Tensor`.
        bases: its results at θ, tensor by tensor.
        count: K, the number of perturbations.
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
        """An argument, whether it was given by position or by name; `default` where it was not given."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)


class NoRuleError(Exception):
    """A rule does not cover this combination of arguments; `by_vmap` does."""


Results = list[Perturbed | None]
"""One entry for every tensor that the operation returns; None where no perturbation changes it."""

Rule = Callable[[OperationCall], Results]

RULES: dict[Any, Rule] = {}


def rule(*functions: str | Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Register a rule for some operations.

    Args:
        functions: names of aten's overloads, such as "mm.default", and functions of the tape's own. A name that this
            version of torch does not have is skipped: one rule is missing then, not the package.
    """

    def register(function: Rule) -> Rule:
        for given in functions:
            operation = overload(given) if isinstance(given, str) else given
            if operation is not None:
                RULES[operation] = function
        return function

    return register


def perturbed_only(call: OperationCall, *positions: int) -> None:
    """Leave a call to `by_vmap` where any other argument than these is perturbed.

    Raises:
        NoRuleError: another one is.
    """
    for position, given in enumerate(call.args):
        if position not in positions and any_perturbed(given):
            raise NoRuleError
    if any(any_perturbed(given) for given in call.kwargs.values()):
        raise NoRuleError


def any_perturbed(tree: Any) -> bool:
    """Whether a perturbed tensor is among nested arguments."""
    if isinstance(tree, (tuple, list)):
        return any(any_perturbed(item) for item in tree)
    return isinstance(tree, Perturbed)


def map_tensors(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The same nesting with the function applied to every tensor, perturbed or not."""
    if isinstance(tree, (Tensor, Perturbed)):
        return function(tree)
    if type(tree) is tuple or type(tree) is list:
        return type(tree)(map_tensors(item, function) for item in tree)
    return tree


def all_perturbed(tree: Any) -> list[Perturbed]:
    """The perturbed tensors among nested arguments."""
    if isinstance(tree, Perturbed):
        return [tree]
    if isinstance(tree, (tuple, list)):
        return [x for item in tree for x in all_perturbed(item)]
    return []
