"""Promise: every torch.nn module that has parameters passes, in eval and train mode, and its rows really match."""

from __future__ import annotations

import pytest

from tests.zoo.modules import ABSTRACT, CASES, Case, parametric_classes
from tests.zoo.sweeps import some_of
from torch_gradcheck import check_module


@pytest.mark.slow_but_for(10)
@pytest.mark.parametrize(
    ("case", "mode"),
    [(case, "train") for case in CASES] + [(case, "eval") for case in some_of(CASES, 2)],
    ids=lambda value: getattr(value, "id", value),
)
def test_a_correct_module_matches(case: Case, mode: str) -> None:
    problem = case.build()
    report = check_module(problem.model, problem.loss_fn, problem.batch, mode=mode, include=problem.include)
    assert report.passed, str(report)
    surprises = {
        row.name: (str(row.status), row.reason)
        for row in report
        if row.status not in case.excused.get(f"{mode} {row.name}", "match").split()
    }
    assert not surprises, str(report)


@pytest.mark.slow
def test_every_parametric_class_of_torch_nn_is_in_the_table() -> None:
    covered = {cls for case in CASES for cls in case.classes}
    missing = [cls.__name__ for cls in parametric_classes() if cls not in covered and cls.__name__ not in ABSTRACT]
    assert missing == []


@pytest.mark.slow
def test_the_walk_over_torch_nn_sees_what_has_parameters() -> None:
    found = {cls.__name__ for cls in parametric_classes()}
    assert {"Linear", "LazyConv3d", "LSTM", "Transformer", "PReLU", "ParameterDict"} <= found
    assert not {"ReLU", "Dropout", "MaxPool2d", "CrossEntropyLoss", "Softmax"} & found


def test_case_ids_are_unique() -> None:
    ids = [case.id for case in CASES]
    assert len(ids) == len(set(ids))
