"""Words for the user: what a report calls each status, and names in sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch_gradcheck.reporting.facts import Role, Status

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StatusWords:
    """What a report says of one status.

    Attributes:
        folded: names the rows that a folded table leaves out, as in "… and 7 more that match".
        mark: stands before the status in the table.
        counted: how the headline counts it, as in "2 at a kink"; "" for right and wrong, which it counts by themselves.
        leaves_open: what is not proven, a row's own reason aside; "" where the gradient is right or wrong.
        is_told_first: comes before every other status among what is not proven.
        style: on a terminal, as rich names it.
    """

    folded: str
    mark: str = "?"
    counted: str = ""
    leaves_open: str = ""
    is_told_first: bool = False
    style: str = "dim"


STATUS_WORDS = {
    Status.MATCH: StatusWords("that match", mark=" ", style="green"),
    Status.MISMATCH: StatusWords("that are wrong", mark="✗", style="red"),
    Status.KINK: StatusWords(
        "at a kink",
        counted="at a kink",
        leaves_open="J is not differentiable there: the gradient lies between the two one-sided slopes, which is all "
        "that can be asked of it.",
        style="yellow",
    ),
    Status.FLAT: StatusWords(
        "that are flat",
        counted="flat (nothing proven)",
        leaves_open="Both sides are zero to within the noise: nothing was proven, a wrong backward would look the "
        "same.",
        style="yellow",
    ),
    Status.UNDECIDED: StatusWords(
        "that are undecided",
        counted="undecided",
        leaves_open="The noise of J is too large to tell right from wrong.",
        is_told_first=True,
        style="yellow",
    ),
    Status.UNUSED: StatusWords(
        "that are unused",
        counted="unused",
        leaves_open="The loss does not reach it and J does not depend on it: there is no gradient to prove.",
    ),
    Status.FROZEN: StatusWords(
        "that are frozen",
        mark="-",
        counted="frozen (not checked)",
        leaves_open="requires_grad is false: not checked.",
    ),
}
"""The words of every status, in the order in which the headline counts them."""


NOUNS = {
    Role.PARAMETER: "parameter",
    Role.INPUT: "input",
    Role.CAPTURED: "captured tensor",
    Role.ARGUMENT: "argument",
    Role.OUTPUT: "output",
}
"""The noun for a tensor on trial."""


def noun(roles: Iterable[Role], number: int = 1) -> str:
    """The noun for this number of tensors of these roles: "parameters"; "tensors" where the roles differ."""
    distinct = set(roles) or {Role.PARAMETER}
    return (NOUNS[distinct.pop()] if len(distinct) == 1 else "tensor") + ("" if number == 1 else "s")


def counted(roles: Sequence[Role]) -> str:
    """Tensors on trial counted: "3 parameters", or "3 tensors (2 parameters, 1 input)" where their roles differ."""
    each = [f"{number:,} {noun([role], number)}" for role, number in Counter(roles).items()]
    in_all = f"{len(roles):,} {noun(roles, len(roles))}"
    return f"{in_all} ({', '.join(each)})" if len(each) > 1 else in_all


@dataclass(frozen=True, slots=True)
class LossWords:
    """What a report calls the code that computes J, where no module of the model is running.

    Attributes:
        culprit: its name where it goes wrong itself.
        names_functions: an autograd.Function that it calls is the culprit by its own name.
        described: what it is, in a sentence.
        short: what depends on θ.
        computes: what computes J of the outputs of modules.
        runs_backward: what may call `backward()` itself.
        with_model: all code of the user's.
        given: how a changing number is to be handed to it.
        must_be: what J is to be, where it does not depend on θ.
    """

    culprit: str = "loss_fn"
    names_functions: bool = False
    described: str = "the loss function or closure"
    short: str = "the loss"
    computes: str = "the loss function"
    runs_backward: str = "the closure"
    with_model: str = "the model's forward or the loss"
    given: str = "with the batch"
    must_be: str = (
        "Is it the loss of another model, one computed beforehand, or a count such as an accuracy? It must be "
        "computed from the output of the model that is checked, by operations that have a gradient."
    )

    @classmethod
    def of_function(cls, name: str) -> LossWords:
        """Those for a function that is checked by itself."""
        it = "the function"
        must_be = "What it returns must be computed from its arguments, by operations that have a gradient."
        return cls(name, True, it, it, it, it, it, "as an argument", must_be)


LOSS_WORDS = LossWords()
"""Those for the loss of a model."""


def listed(names: Sequence[T], most: int = 3, in_words: Callable[[T], str] = str) -> str:
    """The first `most` names, each written by `in_words`, and how many more there are: "a, b, c and 4 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(in_words, names[:most])) + more


def tolerance_in_words(tolerance: float) -> str:
    """Returns a tolerance as one writes it in code: "1e-5", "2.5e-4"."""
    mantissa, _, exponent = f"{tolerance:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if exponent else mantissa


def duration(seconds: float) -> str:
    """Returns a time in the largest unit that it holds twice, as in "28 hours" for 1e5 seconds."""
    for unit, size in (("years", 365 * 86400.0), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} seconds"


def times(value: float) -> str:
    """Returns a multiple to two digits, as in "0.97", "1.0", "14", "3e+05"; "–" for NaN."""
    if math.isnan(value) or math.isinf(value):
        return "–" if math.isnan(value) else "inf"
    digits = 0 if value >= 9.95 else 1 if value >= 0.995 else 2
    return f"{value:.{digits}f}" if 0.0995 <= value < 1e5 or not value else f"{value:.1g}"


def percent(share: float) -> str:
    """Returns a share to two digits, as in "0.39%", "6e-08"; "–" for NaN."""
    if math.isnan(share):
        return "–"
    return f"{100 * share:.2g}%" if 1e-4 <= share < 10 else f"{share:.0e}"
