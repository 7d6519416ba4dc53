"""What the search for a culprit finds, as typed rows."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch_gradcheck.diagnosis.culprit.call_recording import RecordedCall
from torch_gradcheck.diagnosis.culprit.tangents import Tangents, WrongCoordinate
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning
from torch_gradcheck.precision.lower_precisions import Rounding


@dataclass(frozen=True)
class Blame:
    """Where a wrong gradient goes wrong.

    Attributes:
        culprit: the module's qualified name ("" for the model's own forward), `"loss_fn"`, the name of a parameter
            whose hook is at fault, or None.
        notes: what there is to say about it; the reason where `culprit` is None.
        meanings: what a factor may stand for in this run.
        order: names of the model's modules in the order in which they were first called.
        rounding: the lower precision that the culprit rounds gradients to.
    """

    culprit: str | None
    notes: tuple[str, ...]
    meanings: tuple[FactorMeaning, ...] = ()
    order: tuple[str, ...] = ()
    rounding: Rounding | None = None


@dataclass
class Attribution:
    """What was found along one wrong coordinate.

    Attributes:
        wrong: the coordinate.
        tangents: how the inputs of every call move with it.
        own: the calls with a mistake of their own (None is the loss function or closure itself), and how large.
        hook: what the parameter's hooks contribute.
        mutating: calls whose backward writes to the gradient it is given.
        unlike: calls of modules whose gradients for their own parameter add up to another one than the run gave it.
        roundings: lower precisions that calls with a mistake round their gradients to.
        inputs: for an autograd.Function with a mistake, the inputs whose gradients are wrong.
        unclear: calls that could not be told about, and why.
        open: why the coordinate itself tells nothing, "" where it does.
    """

    wrong: WrongCoordinate
    tangents: dict[RecordedCall, Tangents] = field(default_factory=dict)
    own: dict[RecordedCall | None, float] = field(default_factory=dict)
    hook: float = 0.0
    mutating: list[RecordedCall] = field(default_factory=list)
    unlike: list[RecordedCall] = field(default_factory=list)
    roundings: list[Rounding] = field(default_factory=list)
    inputs: dict[RecordedCall | None, list[str]] = field(default_factory=dict)
    unclear: list[tuple[RecordedCall, str]] = field(default_factory=list)
    open: str = ""
