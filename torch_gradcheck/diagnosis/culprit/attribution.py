"""The results of the search for a culprit: along one wrong coordinate (Attribution), and as a whole (Culprit)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.tangents import Tangents, WrongCoordinate
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning
from torch_gradcheck.precision.lower_precisions import Rounding


class Lost(Enum):
    """Where a gradient is lost at a call that J depends on: made under no_grad, behind its output, before its input."""

    UNDER_NO_GRAD = auto()
    BEHIND = auto()
    BEFORE = auto()


class LostPath(NamedTuple):
    """A call at which a gradient is lost, and where."""

    call: RecordedCall
    how: Lost


class Suspect(NamedTuple):
    """A call whose backward may be wrong: its number in the run, and the name of the module that it is part of."""

    number: int
    call: RecordedCall
    name: str


@dataclass(frozen=True)
class Culprit:
    """The module in which a wrong gradient goes wrong, or the reason why none can be named.

    Attributes:
        name: the module's qualified name ("" for the model's own forward), `"loss_fn"`, the name of a parameter whose
            hook is at fault, or None.
        notes: sentences on the culprit; the reason where `name` is None.
        meanings: factors with a meaning in this run, such as the number of rows of the batch.
        order: names of the model's modules in the order in which they were first called.
        rounding: the lower precision that the culprit rounds gradients to; None where it does not.
        suspects: the calls found wrong and all other calls of the same code.
        functions: all other calls of Functions, whose mistakes may be too small beside these to be found by following.
        place: where in the code the mistake is, see `Facts.place`.
    """

    name: str | None
    notes: tuple[str, ...]
    meanings: tuple[FactorMeaning, ...] = ()
    order: tuple[str, ...] = ()
    rounding: Rounding | None = None
    suspects: tuple[Suspect, ...] = ()
    functions: tuple[Suspect, ...] = ()
    place: str = ""


@dataclass
class Attribution:
    """The error E of one wrong coordinate, attributed to calls.

    Attributes:
        wrong: the coordinate.
        tangents: of the inputs of every call, along this coordinate.
        own: the part of E that arises in a call itself, for calls where it is large; None is the loss function or
            closure itself.
        hook: the part of E that the parameter's hooks add.
        mutating: calls whose backward writes to the gradient it is given; in the end those that this is the fault of.
        lost: for a module or the loss with a mistake: the call that it makes and loses the gradient of.
        unlike: calls of the parameter's modules whose gradients for it, each call run alone, do not add up to that of
            the run, where that is the error.
        only_alone: whether calls that are right alone may do something else in the run: where they do not add up for
            another reason, such as a penalty on the parameter, or write to gradients.
        roundings: lower precisions that calls with a mistake round their gradients to.
        inputs: for an autograd.Function with a mistake, the paths of the inputs whose gradients are wrong.
        reasons: for the backward of a Function that J differentiates, with a mistake: why it is wrong, in words.
        repeated: for a call with a mistake of which each call of the same module makes a little: the parts of E that
            these make, its own part first.
        made_by: for a call with a mistake that the backward of a Function made: the call of that Function.
        unclear: calls that could not be checked alone, each with the reason.
        unusable: why the coordinate cannot be followed at all; "" where it can.
    """

    wrong: WrongCoordinate
    tangents: dict[RecordedCall, Tangents] = field(default_factory=dict)
    own: dict[RecordedCall | None, float] = field(default_factory=dict)
    hook: float = 0.0
    mutating: list[RecordedCall] = field(default_factory=list)
    unlike: list[RecordedCall] = field(default_factory=list)
    lost: dict[RecordedCall | None, LostPath] = field(default_factory=dict)
    only_alone: bool = False
    roundings: list[Rounding] = field(default_factory=list)
    inputs: dict[RecordedCall | None, list[str]] = field(default_factory=dict)
    reasons: dict[RecordedCall | None, str] = field(default_factory=dict)
    repeated: dict[RecordedCall | None, list[float]] = field(default_factory=dict)
    made_by: dict[RecordedCall | None, RecordedCall] = field(default_factory=dict)
    unclear: list[tuple[RecordedCall, str]] = field(default_factory=list)
    unusable: str = ""

    @property
    def parts(self) -> list[float]:
        """What E is the sum of: the parts that arise in calls, in hooks, and those that are too small to be told."""
        known = [*self.own.values(), self.hook]
        return [*known, self.wrong.error - sum(known)]
