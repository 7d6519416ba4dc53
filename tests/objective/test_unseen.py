"""What the notes of a report say that the check could not see, and where they say nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import check_module
from torch_gradcheck.objective.unseen import Activity, in_training

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))

MODE, EQUAL, SILENT = "checked in eval mode", "parameters whose entries are all equal", "units that never fire"


def note(model: nn.Module, start: str, batch: Any = X, **options: Any) -> str:
    """The one note that begins so; "" without."""
    report = check_module(model, lambda y: y.square().mean(), batch, **options)
    found = [each for each in report.notes if each.startswith(start)]
    assert len(found) <= 1
    return found[0] if found else ""


def net(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), *layers)


# Modes ----------------------------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.noisy(x)

    def noisy(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


class Logging(nn.Module):
    """Looks at its mode, but not in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def extra_repr(self) -> str:
        return f"training={self.training}"


class Inherits(Noisy):
    pass


CHANGE: dict[str, tuple[nn.Module, str]] = {
    "dropout": (nn.Dropout(0.1), "Dropout"),
    "alpha dropout": (nn.AlphaDropout(0.1), "AlphaDropout"),
    "dropout of nothing": (nn.Dropout(0.0), ""),
    "batch norm": (nn.BatchNorm1d(4), "BatchNorm1d"),
    "batch norm that tracks nothing": (nn.BatchNorm1d(4, track_running_stats=False), ""),
    "instance norm": (nn.InstanceNorm1d(4), ""),
    "instance norm that tracks": (nn.InstanceNorm1d(4, track_running_stats=True), "InstanceNorm1d"),
    "layer norm": (nn.LayerNorm(4), ""),
    "random leaks": (nn.RReLU(), "RReLU"),
    "leaks that are none": (nn.RReLU(0.2, 0.2), ""),
    "lstm": (nn.LSTM(4, 4, 2, dropout=0.1), "LSTM"),
    "lstm of one layer": (nn.LSTM(4, 4), ""),
    "attention": (nn.MultiheadAttention(4, 1, dropout=0.1), "MultiheadAttention"),
    "attention without dropout": (nn.MultiheadAttention(4, 1), ""),
    "transformer layer": (nn.TransformerEncoderLayer(4, 1), ""),
    "the user's": (Noisy(), "Noisy reads .training"),
    "the user's, inherited": (Inherits(), "Inherits reads .training"),
    "the user's, elsewhere": (Logging(), ""),
}


@pytest.mark.parametrize(("module", "words"), CHANGE.values(), ids=CHANGE)
def test_what_training_mode_changes(module: nn.Module, words: str) -> None:
    assert in_training(module) == words


class WithSpare(nn.Module):
    """Has a dropout that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.spare = nn.Linear(4, 2), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_modules_that_change_in_training_are_named() -> None:
    model = net(nn.BatchNorm1d(4), nn.Tanh(), Noisy())
    assert note(model, MODE).endswith("training mode changes in 1 (BatchNorm1d), 3 (Noisy reads .training)")


def test_many_such_modules_are_counted() -> None:
    model = net(*[nn.Dropout(0.5) for _ in range(5)])
    assert note(model, MODE).endswith(" in 1 (Dropout), 2 (Dropout), 3 (Dropout) and 2 more")


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (lambda: net(nn.Dropout(0.5)), {"mode": "train"}),
        (lambda: net(nn.Dropout(0.5)), {"mode": "keep"}),
        (lambda: net(nn.Tanh()), {}),
        (WithSpare, {}),
    ],
    ids=["train", "keep, training", "nothing changes", "not called"],
)
def test_no_note_on_the_mode(build: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    assert note(build(), MODE, **options) == ""


def test_a_module_that_the_caller_holds_in_eval_mode() -> None:
    assert "in 1 (Dropout)" in note(net(nn.Dropout(0.5).eval()), MODE, mode="keep")


# Entries that are all equal -------------------------------------------------------------------------------------------


class Parts(nn.Module):
    """The product of an input with its parameters, or what they are told to be."""

    def __init__(self, **parts: Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            self.register_parameter(name, nn.Parameter(part))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parameters():
            x = x + torch.tanh(x) * part
        return x


EQUAL_OR_NOT: dict[str, tuple[dict[str, Tensor], str]] = {
    "ones": ({"a": torch.ones(4)}, "a (all 1)"),
    "zeros": ({"a": torch.zeros(4)}, "a (all 0)"),
    "both, ones first": ({"a": torch.zeros(4), "b": torch.ones(4), "c": torch.ones(4)}, "b, c (all 1); a (all 0)"),
    "another number": ({"a": torch.full((4,), 1e-5)}, "a (all 1e-05)"),
    "a scalar of 0": ({"a": torch.tensor(0.0)}, "a (all 0)"),
    "a scalar of 1": ({"a": torch.ones(1)}, "a (all 1)"),
    "a scalar of 0.3": ({"a": torch.tensor(0.3)}, ""),
    "one entry differs": ({"a": torch.tensor([1.0, 1.0, 1.0, 1.0001])}, ""),
}


@pytest.mark.parametrize(("parts", "words"), EQUAL_OR_NOT.values(), ids=EQUAL_OR_NOT)
def test_equal_entries(parts: dict[str, Tensor], words: str) -> None:
    found = note(nn.Sequential(nn.Linear(4, 4), Parts(**parts)), EQUAL)
    expected = words.replace("a (", "1.a (").replace("b, c", "1.b, 1.c")
    assert found.partition(": ")[2] == expected


def test_the_advice_is_to_perturb_where_that_helps() -> None:
    model = net(nn.LayerNorm(4))
    assert "may hide a mistake (perturb=0.1 checks away from there): 1.weight" in note(model, EQUAL)
    assert note(model, EQUAL, perturb=0.1) == ""
    given = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    assert note(model, EQUAL, gradients=given).endswith("may hide a mistake: 1.weight (all 1); 1.bias (all 0)")
    model[1].weight.requires_grad_(False)  # type: ignore[index,union-attr]
    assert note(model, EQUAL, perturb=0.1).endswith("1.weight (all 1)"), "frozen parameters do not move"


def test_a_parameter_that_nothing_depends_on_hides_nothing() -> None:
    model = net()
    model.register_parameter("spare", nn.Parameter(torch.ones(3)))
    assert note(model, EQUAL) == ""


# Units that never fire ------------------------------------------------------------------------------------------------


def with_dead_units(layer: nn.Module, *units: int) -> nn.Module:
    with torch.no_grad():
        for unit in units:
            layer.bias[unit] = -100.0  # type: ignore[index,operator]
    return layer


class Twice(nn.Module):
    """One ReLU behind two layers; unit 1 of the first never fires, unit 1 of the second does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.relu = with_dead_units(nn.Linear(4, 3), 1), nn.Linear(3, 3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.other(self.relu(self.one(x))))


MANY = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(1))
SEQUENCES = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1))
WORDS = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(1))

DEAD: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "linear": (lambda: nn.Sequential(with_dead_units(nn.Linear(4, 9), 2, 5), nn.ReLU()), MANY, "2 of 9 in 1 (ReLU)"),
    "sequence": (lambda: nn.Sequential(with_dead_units(nn.Linear(4, 9), 2), nn.ReLU()), WORDS, "1 of 9 in 1 (ReLU)"),
    "channels": (
        lambda: nn.Sequential(with_dead_units(nn.Conv2d(2, 6, 2), 0), nn.ReLU()),
        IMAGES,
        "1 of 6 in 1 (ReLU)",
    ),
    "channels in 1d": (
        lambda: nn.Sequential(with_dead_units(nn.Conv1d(2, 6, 2), 0), nn.ReLU()),
        SEQUENCES,
        "1 of 6 in 1 (ReLU)",
    ),
    "in place": (lambda: nn.Sequential(with_dead_units(nn.Linear(4, 9), 2), nn.ReLU(True)), MANY, "1 of 9 in 1 (ReLU)"),
    "hard swish": (
        lambda: nn.Sequential(with_dead_units(nn.Linear(4, 9), 2), nn.Hardswish()),
        MANY,
        "1 of 9 in 1 (Hardswish)",
    ),
    "leaky": (lambda: nn.Sequential(with_dead_units(nn.Linear(4, 9), 2), nn.LeakyReLU()), X, ""),
    "alive": (lambda: nn.Sequential(nn.Linear(4, 2), nn.ReLU()), MANY, ""),
    "fires in another call": (Twice, MANY, ""),
}


@pytest.mark.parametrize(("build", "batch", "words"), DEAD.values(), ids=DEAD)
def test_units_that_never_fire(build: Callable[[], nn.Module], batch: Tensor, words: str) -> None:
    torch.manual_seed(2)
    found = note(build(), SILENT, batch)
    assert found.rpartition(": ")[2] == words


def test_activity_of_an_output_without_entries_or_dimensions_is_none() -> None:
    model = nn.Sequential(nn.ReLU())
    activity = Activity(model)
    activity.saw("0", [torch.zeros(()), torch.zeros(0, 3)])
    assert activity.ran == {"0"}
    assert activity.silent("0") == {}


def test_no_note_costs_an_evaluation() -> None:
    silent, noted = (
        check_module(net(layer), lambda y: y.square().mean(), X) for layer in (nn.Identity(), nn.Dropout(0.5))
    )
    assert len(noted.notes) == len(silent.notes) + 1
    assert noted.evaluations == silent.evaluations
