from __future__ import annotations

import numpy as np
import pytest
import torch

import comparison
from comparison_cases import CASES, KINDS, mistakes

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=BY_NAME)
def test_the_backward_is_right_and_each_mistake_is_one(case) -> None:
    arguments = [torch.tensor(value, requires_grad=True) for value in case.values]
    output = case.forward(torch, *arguments)
    upstream = torch.linspace(0.5, 1.5, output.numel(), dtype=torch.float64).reshape(output.shape)
    right = torch.autograd.grad(output, arguments, upstream)

    given = case.backward(torch, upstream, *[argument.detach() for argument in arguments])
    planted = [mistake.planted(torch, given) for mistake in mistakes(case)]

    assert all(torch.allclose(mine, its, rtol=1e-10, atol=0) for mine, its in zip(given, right, strict=True))
    assert all(any(not torch.equal(a, b) for a, b in zip(wrong, given, strict=True)) for wrong in planted)
    assert np.allclose(case.forward(np, *case.values), output.detach().numpy(), rtol=1e-14)


@pytest.mark.slow
def test_a_wrong_entry_is_found_and_named() -> None:
    case = BY_NAME["softmax cross-entropy"]
    (mistake,) = [each for each in mistakes(case) if each.kind == "one entry 1 % too large"]

    said = comparison.ours(case, mistake)

    assert not comparison.ours(case, None).accuses
    assert said.accuses
    assert said.arguments == {0}
    assert mistake.factors[said.entry] == 1.01


def test_a_function_that_is_accused_anyhow_counts_no_mistakes() -> None:
    score = comparison.scored(lambda case, mistake: comparison.Said(accuses=True), CASES[1:2])

    assert score.false_alarms == ["softmax cross-entropy"]
    assert score.planted == {}


def test_all_kinds_of_mistakes_are_counted() -> None:
    score = comparison.scored(lambda case, mistake: comparison.Said(mistake is not None), CASES[1:2])

    assert score.found == score.planted == dict.fromkeys(KINDS, 1)
    assert (score.named_argument, score.named_entry, score.found_in_entry) == (0, 0, 2)
