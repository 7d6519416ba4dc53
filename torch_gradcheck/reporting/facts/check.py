"""Everything a check found: facts only, no formatting and no computation on tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import SupportsIndex, overload

from torch_gradcheck.reporting.close_names import close_names
from torch_gradcheck.reporting.facts.content import Record
from torch_gradcheck.reporting.facts.contract import ContractEntry, ContractStatus
from torch_gradcheck.reporting.facts.provenance import Provenance
from torch_gradcheck.reporting.facts.row import ParameterReport, Role, badness
from torch_gradcheck.reporting.facts.status import Status, Verdict


@dataclass(frozen=True, eq=False)
class Facts(Record):
    """Everything a check found; iterates over its `ParameterReport`s in the order of `named_parameters()`.

    Attributes:
        parameters: one row a distinct parameter, then one a tensor on trial that J is given.
        relative_error: ‖numeric − analytic‖₂ / (‖numeric‖₂ + ‖analytic‖₂) over the decided rows; None where nothing was
            decided.
        loss: J(θ).
        method: `"exact"` or `"projected"`.
        evaluations: the number of evaluations of J, forward passes for the analytic side included.
        seconds: wall time of the whole check.
        tolerance: the largest relative error that passes.
        dtype: the precision of the check, such as `"float64"`.
        mode: `"eval"`, `"train"` or `"keep"`.
        seed: the seed of the check's own random choices.
        noise: the noise of J, one standard deviation, in the unit of J: as measured, but no less than the rounding of
            J(θ).
        culprit: where the mistake is: the innermost module whose own backward is wrong ("" for the model's own
            forward), `"loss_fn"`, or a parameter whose hook is at fault. Of a function: the Function or operator at
            fault, or its own name. None where nothing is wrong, or it cannot be told; `notes` says why.
        notes: one sentence each on what the figures do not say.
        in_grad: the report on the `.grad` that a training step left, where `.grad` was checked too. The row of a
            parameter is then the worse of the two.
        backward_spread: how far two runs of the backward lie apart where they differ by more than rounding: the largest
            difference relative to the largest entry of the gradient; 0 where they do not. Such a check does not pass.
        order: 1, or 2 where J is the slope ⟨v, ∇J⟩ of the loss and its gradient is that of a double backward.
        contract: of `check_function`, one entry each for what else was tried; else empty.
        reference: the report on the reference's own gradients, in float64 against centered differences, where a
            candidate was compared with one. Nothing passes beside a reference that is wrong itself.
        processes: how many processes shared the evaluations; 1 without a group. `seconds` are those of the first one.
        place: where the culprit's mistake is, such as "in the backward of Swish at net.py:13"; "" where there is none
            or it has no line.
        provenance: the model's class, versions, machine and date, and how to check again; None within another report.
    """

    parameters: tuple[ParameterReport, ...]
    relative_error: float | None
    loss: float
    method: str
    evaluations: int
    seconds: float = field(compare=False)
    tolerance: float
    dtype: str
    mode: str
    seed: int
    noise: float
    culprit: str | None = None
    notes: list[str] = field(default_factory=list)
    in_grad: Facts | None = None
    backward_spread: float = 0.0
    contract: list[ContractEntry] = field(default_factory=list)
    order: int = 1
    reference: Facts | None = None
    processes: int = 1
    place: str = ""
    provenance: Provenance | None = field(default=None, compare=False)

    @property
    def passed(self) -> bool:
        """No parameter is a mismatch, at least one is a match or a kink, and the backward is one function.

        Of a function, no entry of the contract has failed either. A check that proved nothing does not pass, nor does
        one that proved nothing but the outputs of a candidate.
        """
        right = not (self.is_wrong or self.backward_spread)
        return right and any(row.status.is_proven for row in self.parameters if row.role is not Role.OUTPUT)

    @property
    def proven(self) -> bool:
        """`passed`, and every checked parameter is a match or a kink: none is flat, unused or undecided."""
        return self.passed and all(row.status.is_proven for row in self.parameters if row.status.is_checked)

    @property
    def verdict(self) -> Verdict | None:
        """The word for `relative_error`; None where nothing was decided."""
        return None if self.relative_error is None else Verdict.of(self.relative_error)

    @property
    def mismatches(self) -> list[ParameterReport]:
        """The rows that are wrong, worst first (a ratio of NaN is the worst)."""
        wrong = [row for row in self.parameters if row.status is Status.MISMATCH]
        return sorted(wrong, key=badness, reverse=True)

    @property
    def broken(self) -> list[ContractEntry]:
        """The entries of the contract that have failed."""
        return [entry for entry in self.contract if entry.status is ContractStatus.FAILED]

    @property
    def is_wrong(self) -> bool:
        """Whether a gradient is wrong, that of the reference too, or an entry of the contract has failed."""
        return bool(self.mismatches or self.broken or self.has_wrong_reference)

    @property
    def has_wrong_reference(self) -> bool:
        """Whether the reference's own gradient is wrong."""
        return self.reference is not None and bool(self.reference.mismatches)

    def __bool__(self) -> bool:
        return self.passed

    def __iter__(self) -> Iterator[ParameterReport]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __contains__(self, name: object) -> bool:
        return any(name == row.name or name in row.aliases for row in self.parameters)

    @overload
    def __getitem__(self, key: str | SupportsIndex) -> ParameterReport: ...
    @overload
    def __getitem__(self, key: slice) -> list[ParameterReport]: ...
    def __getitem__(self, key: str | SupportsIndex | slice) -> ParameterReport | list[ParameterReport]:
        """The row of a name or alias, the row at a position, or a list of rows for a slice of positions."""
        __tracebackhide__ = True  # pytest shows the caller's line
        if isinstance(key, str):
            return self._named(key)
        if isinstance(key, slice):
            return list(self.parameters[key])
        if not hasattr(key, "__index__"):
            raise TypeError(f"a row is found by its name or its position, not by a {type(key).__name__}")
        return self._at(index(key))

    def _named(self, name: str) -> ParameterReport:
        __tracebackhide__ = True
        for row in self.parameters:
            if name == row.name or name in row.aliases:
                return row
        known = [other for row in self.parameters for other in (row.name, *row.aliases)]
        raise KeyError(f"no row {name!r} in this report; {close_names(name, known)}")

    def _at(self, position: int) -> ParameterReport:
        __tracebackhide__ = True
        if not -len(self) <= position < len(self):
            raise IndexError(f"no row {position} in this report; {_in_short([row.name for row in self.parameters])}")
        return self.parameters[position]


def _in_short(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"there are {', '.join(names[:3])}{more}" if names else "there are none"
