"""The examples do what they tell their readers: right gradients pass, each planted mistake is flagged where it is."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

import check_a_function
import digits_from_scratch as scratch
import digits_mlp
import find_the_bug
import forces
import straight_through
import train_digits
import train_with_torchrun
from tests.processes.ranks import Ranks
from tests.processes.started import started
from tests.pytest_plugin.loading import PLUGIN
from torch_gradcheck import check_module
from torch_gradcheck.command_line import main

ROOT = Path(__file__).parents[2]


ALL = {"W1", "b1", "W2", "b2", "W3", "b3"}


@pytest.fixture(scope="module")
def titled_reports():
    """What the script prints, in its order."""
    return list(scratch.reports())


@pytest.mark.parametrize(
    ("position", "title", "wrong"),
    [
        pytest.param(0, "at random initialisation", set(), id="right, at random initialisation"),
        pytest.param(1, "after training", set(), id="right, after training"),
        pytest.param(2, scratch.ForgottenPenalty.__doc__, {"W1", "W2", "W3"}, id="forgotten penalty"),
        pytest.param(3, scratch.ForgottenMean.__doc__, {"b1", "b2", "b3"}, id="forgotten mean"),
        pytest.param(4, scratch.ForgottenSquare.__doc__, {"W1", "b1", "W2", "b2"}, id="forgotten square"),
    ],
)
@pytest.mark.slow
def test_backprop_by_hand_is_wrong_under_exactly_these_names(titled_reports, position, title, wrong):
    found, report = titled_reports[position]

    assert title in found
    assert report.passed is (not wrong)
    assert {row.name for row in report.mismatches} == wrong
    assert {row.name for row in report if row.status == "match"} == ALL - wrong


@pytest.mark.slow
def test_both_writings_of_the_cost_agree(titled_reports):
    X, labels = scratch.digits()
    _, report = titled_reports[0]

    assert report.loss == pytest.approx(scratch.cost(scratch.initial_parameters(), X[:, :50], labels[:50]), rel=1e-12)


def test_gradient_descent_learns_the_digits():
    X, labels = scratch.digits()
    initial = scratch.initial_parameters()
    trained = scratch.train(initial, X[:, :50], labels[:50], steps=40)

    assert scratch.accuracy(initial, X[:, :50], labels[:50]) < 0.3
    assert scratch.accuracy(trained, X[:, :50], labels[:50]) > 0.9


@pytest.mark.slow
def test_script_prints_every_report_under_its_title(titled_reports, monkeypatch, capsys):
    monkeypatch.setattr(scratch, "reports", lambda: titled_reports)

    scratch.main()

    assert capsys.readouterr().out == "".join(f"\n{title}\n\n{report}\n" for title, report in titled_reports)


def test_problem_passes():
    report = check_module(*digits_mlp.problem())

    assert {row.name for row in report if row.status == "match"} == {
        "hidden.weight",
        "hidden.bias",
        "output.weight",
        "output.bias",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("basis", "wrong"), [(forces.RadialBasis, {"centres"}), (forces.RepairedRadialBasis, set())], ids=["wrong", "right"]
)
def test_a_wrong_double_backward_spoils_forces_and_not_energies(basis, wrong):
    energies, of_second_order, of_forces = [report for _, report in forces.reports(basis)]

    assert energies.proven
    assert {row.name for row in of_second_order.mismatches} == wrong
    assert {row.name.removeprefix("energy.") for row in of_forces.mismatches} == wrong
    assert of_forces.culprit == ("energy" if wrong else None)


def test_a_straight_through_estimator_is_right_once_it_is_declared(capsys):
    straight_through.main()

    plain, first_note, declared, _ = capsys.readouterr().out.splitlines()
    assert "WRONG in 2 of 4" in plain
    assert "straight_through.py:26 is meant to be held" in first_note
    assert "gradients right: 4 of 4" in declared


def test_a_function_is_wrong_in_one_gradient_and_in_one_entry_of_its_contract():
    report = check_a_function.report_of(check_a_function.RMSNorm)

    assert {row.name: row.status for row in report} == {"x": "match", "weight": "mismatch"}
    assert report["weight"].diagnosis.factor == pytest.approx(0.2)
    assert [entry.name for entry in report.broken] == ["layouts"]


def test_the_mended_function_keeps_its_contract():
    report = check_a_function.report_of(check_a_function.MendedRMSNorm)

    assert report.proven
    assert {entry.status for entry in report.contract} <= {"passed", "not_applicable"}


@pytest.mark.slow
def test_broken_problem_is_wrong_before_the_broken_activation_only():
    report = check_module(*digits_mlp.broken_problem())

    assert {row.name for row in report.mismatches} == {"hidden.weight", "hidden.bias"}
    assert {row.name for row in report if row.status == "match"} == {"output.weight", "output.bias"}


@pytest.mark.slow
@pytest.mark.parametrize(("function", "status"), [("problem", 0), ("broken_problem", 1)])
def test_command_line_exits_with_the_verdict(function, status, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")

    assert main([f"examples/digits_mlp.py:{function}"]) == status
    assert "hidden.weight" in capsys.readouterr().out


@pytest.mark.slow
def test_the_bug_is_found_though_the_model_learns():
    losses, report = find_the_bug.report_after_training(mended=False)

    assert losses[-1] < losses[0] / 4
    assert report.culprit == "blocks.0.norm2"
    assert "autograd.Function FusedLayerNorm gives a wrong gradient for x, in its backward at" in report.notes[0]
    upstream = ("embedding.", "blocks.0.norm1.", "blocks.0.attention.")
    assert {row.name for row in report.mismatches} == {row.name for row in report if row.name.startswith(upstream)}


@pytest.mark.slow
def test_the_mended_model_is_right_and_the_mistake_is_not_seen_before_training():
    torch.manual_seed(0)
    untrained = check_module(find_the_bug.Transformer(), nn.CrossEntropyLoss(), find_the_bug.counting())
    _, mended = find_the_bug.report_after_training(mended=True)

    assert untrained.passed
    assert mended.passed


train_wrong = functools.cache(train_digits.wrong)
"""Each wrong loop, trained once for all tests."""


@pytest.fixture(scope="module")
def trained():
    """The model of the right loop, and what watched it."""
    return train_digits.right()


@pytest.mark.slow
def test_the_right_loop_learns_and_is_right_at_every_check(trained):
    model, monitor = trained

    assert train_digits.accuracy(model) > 0.97
    assert list(monitor.reports) == [0, 200, 400]
    for report in monitor.reports.values():
        assert {str(row.status) for row in report.in_grad} <= {"match", "flat"}
        assert report.in_grad["6.weight"].status == "match"


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize(
    ("mistake", "step", "kind", "words"),
    [
        (train_digits.forgotten_zero_grad, 1, "accumulated", "zero_grad() is missing"),
        (train_digits.forgotten_division, 0, "scaled", "not divided by 4 accumulation steps"),
        (train_digits.forgotten_unscale, 0, "scaled", "2^16, a loss scale that was not taken out"),
        (train_digits.misplaced_zero_grad, 0, "missing", "zero_grad() came after it"),
    ],
)
def test_each_classic_mistake_is_caught_and_named(mistake, step, kind, words):
    monitor = train_wrong(mistake)

    assert next(step for step, report in monitor.reports.items() if not report.passed) == step
    for row in monitor.reports[step].mismatches:
        assert row.diagnosis.kind == kind
        assert words in row.diagnosis.message


@pytest.mark.slow
def test_the_training_script_tells_what_it_found(trained, monkeypatch, capsys):
    monkeypatch.setattr(train_digits, "right", lambda: trained)
    monkeypatch.setattr(train_digits, "wrong", train_wrong)

    train_digits.main()

    printed = capsys.readouterr().out
    assert printed.startswith("gradients checked on 3 of 401 training steps, none wrong\naccuracy 0.9")
    for mistake in train_digits.MISTAKES:
        assert mistake.__doc__ in printed


@pytest.mark.slow
def test_training_in_two_processes_is_right_and_each_mistake_is_named_on_both(two_ranks: Ranks):
    told, same = two_ranks.run(train_with_torchrun.told)

    assert told == same
    assert told[0] == "gradients checked on 2 of 60 training steps, none wrong"
    assert float(told[1].removeprefix("accuracy ")) > 0.9
    reduction, division = [line for line in told if line.startswith("    ")]
    assert "not reduced over the ranks: .grad on each rank is the gradient of that rank's own batch" in reduction
    assert "summed over the 2 ranks, and not divided by their number" in division


@pytest.mark.slow
def test_the_suite_over_layers_passes(two_ranks: Ranks):
    """In processes that have imported torch already."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *PLUGIN, "examples/test_layers.py"]

    for finished in two_ranks.run(started, str(ROOT), *words):
        assert finished.status == 0, finished.out
        assert "gradcheck: 12 checks; " in finished.out
        assert " 0 not proven, 0 wrong" in finished.out


@pytest.fixture(scope="module")
def patched_model():
    """The script, which imports transformers."""
    return importlib.import_module("compare_a_patched_model")


@pytest.mark.slow
def test_a_mistake_in_one_kernel_of_a_patched_model_is_found_and_named(patched_model):
    report = patched_model.report_on_patched(mended=False)

    assert not report.passed
    assert report.culprit.endswith(("layernorm", "model.norm"))
    assert "(LlamaRMSNorm): run alone on what it was given, its gradient of x is off by" in report.notes[0]
    assert "autograd.Function FusedRMSNorm, in its backward at" in report.notes[0]
    assert {row.name for row in report if row.status == "match"} >= {"model.norm.weight", "lm_head.weight"}
    assert report["output['loss']"].status == "match"


@pytest.mark.slow
def test_a_right_patched_model_passes(patched_model):
    report = patched_model.report_on_patched(mended=True)

    assert report.proven
    assert "not compared: output['logits'] (the candidate returns none)" in report.notes
