"""Kernels in three dtypes beside plain references: no right one is accused, and a wrong one in exactly its rows.

Two inputs in bfloat16, one in the dtypes that round less; a mistake in one of its dtypes, in turn. This tries right
kernels on twenty, as `benchmarks/kernels.py` does with others:

    TORCH_GRADCHECK_INPUTS=20 pytest tests/against_reference/test_table.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.against_reference.shared import SharedReferences
from tests.against_reference.verdicts import verdicts_of
from tests.zoo.candidates import BFLOAT16, KERNELS, Draws, Kernel, Wrong
from torch_gradcheck import Report, check_function
from torch_gradcheck.against_reference import check

INPUTS = int(os.environ.get("TORCH_GRADCHECK_INPUTS", "2"))
"""How many inputs a kernel is tried on in bfloat16 at most, its right twins in turn."""

SEEDS = 1
"""How often a kernel is tried in float16 and float32, with other inputs each time and its right twins in turn."""

KINDS = {
    "1 % in": "scaled",
    "doubled": "scaled",
    "swapped": "permuted",
    "from the end": "permuted",
    "one entry": "partial",
    "one row": "partial",
    "one column": "partial",
    "last expert": "partial",
    "last keys": "partial",
    "one head": "partial",
    "NaN": "partial",
    "None": "missing",
    "sign of up": "sign_flipped",
    "sign of logits": "sign_flipped",
    "mean of v·y": "projection",
    "not projected": "projection",
    "ignored rows": "partial",
}
"""What the words of a mistake's name promise of its diagnosis."""


@dataclass(frozen=True)
class Trial:
    """A kernel, right or wrong, on the inputs of a seed.

    Attributes:
        kernel: its operation.
        name: what is different in it.
        function: what is called.
        dtype: of its inputs.
        rows: exactly those that are wrong.
        inputs: makes them.
    """

    kernel: Kernel
    name: str
    function: Callable[..., Any]
    dtype: torch.dtype
    rows: tuple[str, ...] = ()
    inputs: Callable[[Draws], tuple[Any, ...]] | None = None

    @property
    def id(self) -> str:
        return f"{self.kernel.id}, {self.name}, {name_of(self.dtype)}"

    def report(self) -> Report:
        make = self.inputs or self.kernel.inputs
        with REFERENCES.of((self.kernel.id, make, self.dtype)):
            return check_function(self.function, make(Draws(0, self.dtype)), reference=self.kernel.reference)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_of(kernel: Kernel, number: int, name: str, wrong: Wrong) -> torch.dtype:
    """The dtype in which the mistake of this number is tried: 1 % where it is hard to see, others in turn."""
    possible = [dtype for dtype in kernel.dtypes if dtype in wrong.dtypes]
    return BFLOAT16 if "1 %" in name or "2 %" in name else possible[number % len(possible)]


REFERENCES = SharedReferences()

IN_DTYPE = [(kernel, dtype) for kernel in KERNELS for dtype in kernel.dtypes]

RIGHT = [
    Trial(kernel, name, twin, kernel.dtypes[number % len(kernel.dtypes)])
    for kernel in KERNELS
    for number, (name, twin) in enumerate(kernel.right.items())
]

WRONG = [
    Trial(kernel, name, wrong.function, dtype_of(kernel, number, name, wrong), wrong.rows, wrong.inputs)
    for kernel in KERNELS
    for number, (name, wrong) in enumerate(kernel.wrong.items())
]


@pytest.mark.slow_but_for(12)
@pytest.mark.parametrize("trial", RIGHT, ids=lambda trial: trial.id)
def test_a_right_kernel_passes(trial: Trial) -> None:
    report = trial.report()
    assert {row.name: row.status for row in report} == {row.name: "match" for row in report}, report
    assert report.reference is not None
    assert report.reference.passed, report.reference
    broken = {entry.name for entry in report.contract if entry.status == "failed"}
    assert broken == set(trial.kernel.breaks.get(trial.name, ())), report


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "dtype"), IN_DTYPE, ids=[f"{k.id}, {name_of(dtype)}" for k, dtype in IN_DTYPE])
def test_no_right_kernel_is_accused_whatever_the_inputs(kernel: Kernel, dtype: torch.dtype) -> None:
    twins = list(kernel.right.values())
    first = 0 if dtype is BFLOAT16 else INPUTS  # the other dtypes go on where that one ends
    for seed in range(min(kernel.seeds, INPUTS) if dtype is BFLOAT16 else SEEDS):
        twin = twins[(first + seed) % len(twins)]
        verdicts = verdicts_of(twin, kernel.inputs(Draws(seed, dtype)), kernel.reference, seed)
        assert {each.compared.entry.name for each in verdicts if each.is_wrong} == set(), seed


@pytest.mark.slow_but_for(16)
@pytest.mark.parametrize("trial", WRONG, ids=lambda trial: trial.id)
def test_exactly_what_is_wrong_is_found(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "contract_of_candidate", lambda *_: [])  # which runs a kernel some forty times
    report = trial.report()
    assert {row.name for row in report if row.status == "mismatch"} == set(trial.rows), report
    assert not report.passed
    kinds = {kind for words, kind in KINDS.items() if words in trial.name}
    assert not kinds or {row.diagnosis and row.diagnosis.kind for row in report.mismatches} == kinds, report


def test_the_table_is_long() -> None:
    assert max(len(kernel.right) for kernel in KERNELS) <= 5  # no twin is left out
    assert len([kernel for kernel in KERNELS if BFLOAT16 in kernel.dtypes and kernel.seeds == 20]) >= 40
    assert len(WRONG) >= 60
