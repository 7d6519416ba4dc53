"""The benchmark of kernels has right formulas, plants mistakes where it says, and judges by the rules of others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import comparison_rules
import kernels
from comparison_rules import RULES, Tensors
from fused_kernels import Kernel, Mistake, Operation
from kernel_mistakes import UNIFORM, planted
from kernel_operations import OPERATIONS
from torch_gradcheck import check_function

BY_NAME = {operation.name: operation for operation in OPERATIONS}


def computed(kernel: Kernel | None, operation: Operation, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The output and the gradients of a kernel, of the plain code where it is None."""
    inputs = operation.inputs(dtype, seed=0)
    function = operation.plain if kernel is None else kernel.function()
    return kernels.tensors_of(function, operation, inputs, kernels.upstream(operation.plain(*inputs).detach(), 0))


@pytest.mark.parametrize("tile", [0, 7], ids=["whole", "by tiles"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_formula_is_that_of_autograd(operation: Operation, tile: int) -> None:
    found, right = computed(Kernel(operation, tile, None), operation), computed(None, operation)
    assert found.keys() == right.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_a_mistake_changes_the_rows_that_it_names_and_no_other(operation: Operation) -> None:
    right = computed(Kernel(operation), operation, torch.bfloat16)
    for each in planted(operation, torch.bfloat16, seed=1):
        found = computed(Kernel(operation, mistake=each.mistake), operation, torch.bfloat16)
        changed = {name for name, tensor in found.items() if not torch.equal(tensor, right[name])}
        assert changed, each.name
        assert changed <= each.rows, each.name


def test_kernels_in_float32_have_no_sum_to_spoil() -> None:
    names = [{each.name for each in planted(BY_NAME["linear"], dtype, 0)} for dtype in kernels.DTYPES.values()]
    assert names[0] == names[1]
    assert names[0] - names[2] == {"sums in the dtype, row by row"}


def passing(candidate: Tensor, exact: Tensor, plain: Tensor) -> list[bool]:
    """The verdict of each rule, in their order."""
    return [is_right(Tensors(candidate, exact, plain)) for is_right in RULES.values()]


def test_the_rules_of_others_at_their_limits() -> None:
    exact = torch.ones(100)
    plain = exact + 1e-4
    assert passing(exact, exact, plain) == [True, True, True, False, True]
    assert passing(exact * 1.004, exact, plain) == [True, False, False, False, False]
    assert passing(exact * 1.006, exact, plain)[0] is False
    assert passing(exact + 2.9e-4, exact, plain)[1:3] == [True, False]
    assert comparison_rules.ratio(Tensors(torch.full((3,), 9e-7), torch.zeros(3), torch.zeros(3)))
    assert passing(exact.bfloat16() * 1.3, exact.bfloat16(), exact.bfloat16()) == [False, False, False, False, True]


def test_a_right_kernel_is_no_alarm_and_one_per_cent_is_found() -> None:
    operation = BY_NAME["rms_norm"]
    right = kernels.judged(Kernel(operation), "bfloat16", 0, "in float32")
    each = next(each for each in planted(operation, torch.bfloat16, 0) if each.name == "factor 1.01")
    wrong = kernels.judged(Kernel(operation, mistake=each.mistake), "bfloat16", 0, each.name, each.rows)
    assert not right.wrong[kernels.OURS]
    assert not right.broken
    assert wrong.is_found(kernels.OURS)
    assert not wrong.accused(kernels.OURS)
    figures = kernels.figures_of([right], [wrong], {})
    assert figures["alarms"]["bfloat16"]["in float32"]["cases"] == 1
    assert figures["misses"]["bfloat16"]["factor 1.01"][kernels.OURS] == 0
    assert figures["missed"] == []
    kernels.table(figures)


def test_all_rules_judge_under_the_upstream_gradient_of_the_check() -> None:
    operation = BY_NAME["gelu"]
    given: list[Tensor] = []

    def noted(g: Tensor) -> Tensor:
        given.append(g.clone())
        return g

    inputs = operation.inputs(torch.bfloat16, 3)
    kernel = Kernel(operation, mistake=Mistake(upstream=noted), precision=None)
    check_function(kernel.function(), inputs, reference=operation.plain, seed=3)
    assert torch.equal(given[0], kernels.upstream(operation.plain(*inputs).detach(), 3))


def test_upstream_gradients_of_one_hide_a_mistake_from_the_rules_of_others() -> None:
    each = next(each for each in planted(BY_NAME["layer_norm"], torch.float32, 0) if each.name == UNIFORM)
    case = kernels.judged_under_ones(Kernel(BY_NAME["layer_norm"], mistake=each.mistake), "float32", 0, "", each.rows)
    assert list(case.wrong) == list(RULES)
    assert not any(case.wrong.values())
    counts = kernels.counted([case], kernels.is_missed)
    assert counts[case.kind] == {"cases": 1, kernels.OURS: None, **dict.fromkeys(RULES, 1)}


@pytest.mark.slow
def test_the_smallest_error_that_each_rule_finds() -> None:
    found = kernels.smallest_errors(100, "bfloat16", turns=1)
    assert found[kernels.OURS] is not None
    assert found[kernels.OURS] <= 0.02
    assert found["allclose, wide (Liger)"] is None
