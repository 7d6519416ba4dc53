"""Kernels in three dtypes beside plain references: no right one is accused, and a wrong one in exactly its rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from tests.zoo.candidates import KERNELS, Draws, Kernel, Wrong
from torch_gradcheck import Report, check_function

SEEDS = 20
"""How often a right kernel is tried, with other inputs each time."""

SEEDS_OF_WRONG = 2
"""How often a wrong one is."""


class Right(NamedTuple):
    """A right kernel in one dtype."""

    kernel: Kernel
    dtype: torch.dtype
    twin: str

    @property
    def id(self) -> str:
        return f"{self.kernel.id}, {self.twin}, {name_of(self.dtype)}"

    def report(self, seed: int) -> Report:
        return report_of(self.kernel, self.kernel.right[self.twin], self.kernel.inputs, self.dtype, seed)


class Mistaken(NamedTuple):
    """A wrong kernel in one dtype."""

    kernel: Kernel
    dtype: torch.dtype
    mistake: str

    @property
    def id(self) -> str:
        return f"{self.kernel.id}, {self.mistake}, {name_of(self.dtype)}"

    @property
    def wrong(self) -> Wrong:
        return self.kernel.wrong[self.mistake]

    def report(self, seed: int) -> Report:
        inputs = self.wrong.inputs or self.kernel.inputs
        return report_of(self.kernel, self.wrong.function, inputs, self.dtype, seed)


def report_of(kernel: Kernel, function: Any, inputs: Any, dtype: torch.dtype, seed: int) -> Report:
    return check_function(function, inputs(Draws(seed, dtype)), reference=kernel.reference, seed=seed)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


IN_DTYPE = [(kernel, dtype) for kernel in KERNELS for dtype in kernel.dtypes]
RIGHT = [Right(kernel, dtype, twin) for kernel, dtype in IN_DTYPE for twin in kernel.right]
WRONG = [
    Mistaken(kernel, dtype, mistake)
    for kernel, dtype in IN_DTYPE
    for mistake, wrong in kernel.wrong.items()
    if dtype in wrong.dtypes
]


def assert_right(report: Report) -> None:
    assert {row.name: row.status for row in report} == {row.name: "match" for row in report}, report
    assert report.passed, report
    assert report.reference is not None
    assert report.reference.passed, report.reference


@pytest.mark.slow_but_for(24)
@pytest.mark.parametrize("case", RIGHT, ids=lambda case: case.id)
def test_a_right_kernel_passes(case: Right) -> None:
    assert_right(case.report(seed=0))


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "dtype"), IN_DTYPE, ids=[f"{k.id}, {name_of(dtype)}" for k, dtype in IN_DTYPE])
def test_right_kernels_pass_on_twenty_inputs(kernel: Kernel, dtype: torch.dtype) -> None:
    twins = list(kernel.right)
    for seed in range(1, SEEDS):
        assert_right(Right(kernel, dtype, twins[seed % len(twins)]).report(seed))


@pytest.mark.slow_but_for(40)
@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.id)
def test_exactly_what_is_wrong_is_found(case: Mistaken) -> None:
    for seed in range(SEEDS_OF_WRONG):
        report = case.report(seed)
        assert {row.name for row in report if row.status == "mismatch"} == set(case.wrong.rows), report
        assert not report.passed


def test_the_table_is_long() -> None:
    assert len(IN_DTYPE) >= 40
    assert len({(case.kernel.id, case.mistake) for case in WRONG}) >= 60
