"""Words that are strings with traits: what a status or a kind of mistake has in common with others."""

from __future__ import annotations

from enum import Enum, StrEnum, auto
from typing import Self


class Trait(Enum):
    """A property of a status or a kind of mistake. Other rooms ask for it instead of listing members."""

    NAMED_AS_UNPROVEN = auto()
    """A note names the parameters of this status: the check looked at them and proved nothing."""
    PROVEN = auto()
    """The gradient is as right as one can be: differences of J agree with it."""
    DECIDED = auto()
    """Right or wrong was told, so that Ng's ratio says something."""
    NONZERO = auto()
    """The gradient is not zero, so an error has a size relative to it."""

    WHOLE = auto()
    """A mistake of the whole gradient that rounding does not imitate."""
    PLACED = auto()
    """The message names places of one tensor, so each parameter is told by itself."""
    UNSURE = auto()
    """A tensor of few entries may look like this by chance."""
    SEPARATE = auto()
    """Equal in two parameters, it is no sign of one mistake in both."""
    WHERE = auto()
    """It says where the gradient is wrong, and not what is wrong with it."""


class Word(StrEnum):
    """A string with traits; the traits take no part in comparison, `str()`, pickling or JSON."""

    _value_: str
    traits: frozenset[Trait]

    def __new__(cls, word: str, *traits: Trait) -> Self:
        """A member that is equal to `word`."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.traits = frozenset(traits)
        return member
