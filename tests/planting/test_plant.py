"""The rows of `blind_spots`: which faults there are, which would not be found, and why; how they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.planting.test_equivalence import Detached, First, Recurrent, Residual, Tied, dead, made, squared
from tests.zoo.snapshot import Snapshot
from torch_gradcheck import BlindSpot, BlindSpots, InvalidRequestError, NonFiniteLossError, blind_spots, check_module

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
WHOLE = ["scaled by 1.01", "flipped", "zeroed"]


def hidden(model: nn.Module, batch: Any = X, loss: Callable[..., Any] = squared, **options: Any) -> dict[str, set[str]]:
    """Module → the reasons of its faults that would not be found."""
    found: dict[str, set[str]] = {}
    for row in blind_spots(model, loss, batch, **options).hidden:
        found.setdefault(row.module, set()).add(row.reason)
    return found


def within(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), *layers, nn.Linear(4, 2))


# Which faults there are -----------------------------------------------------------------------------------------------


def test_the_faults_of_a_model_in_the_order_of_its_modules() -> None:
    rows = list(blind_spots(within(nn.Tanh(), nn.LayerNorm(4)), squared, X))
    assert list(dict.fromkeys(row.module for row in rows)) == ["", "0", "1", "2", "3"]
    faults = [row.fault for row in rows if row.module == "2"]
    assert [fault.partition(" [")[0] for fault in faults] == [
        *(f"output gradient {how}" for how in WHOLE),
        "output gradient, entry",
        *(f"gradient of weight {how}" for how in WHOLE),
        "gradient of weight, entry",
        "weight left out of the gradient of the input",
        *(f"gradient of bias {how}" for how in WHOLE),
        "gradient of bias, entry",
    ], "the bias does not enter the gradient of the input"


def test_a_tied_parameter_is_told_of_once() -> None:
    model, batch, _ = made("tied")
    named = [row.module for row in blind_spots(model, squared, batch) if row.fault == "gradient of weight flipped"]
    assert named == ["table", "norm"]


def test_a_frozen_parameter_has_no_gradient_and_is_in_that_of_the_input() -> None:
    model = within(nn.LayerNorm(4))
    model[1].requires_grad_(False)  # type: ignore[index,union-attr]
    faults = [row.fault for row in blind_spots(model, squared, X) if row.module == "1"]
    assert not any(fault.startswith("gradient of") for fault in faults)
    assert "weight left out of the gradient of the input" in faults


def test_modules_that_are_not_called_themselves_have_no_output() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each = nn.ModuleList([nn.Linear(4, 4)])
            self.attention = nn.MultiheadAttention(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.each[0](x)
            return self.attention(h, h, h)[0]

    spots = blind_spots(Listed(), squared, X)
    of_outputs = {row.module for row in spots if row.fault.startswith("output gradient")}
    assert of_outputs == {"", "each.0", "attention"}
    assert all(row.found for row in spots if row.module == "attention.out_proj")


# Why a fault would not be found ---------------------------------------------------------------------------------------


def test_a_model_without_blind_spots() -> None:
    class Scaled(nn.Linear):
        """A first layer, on tokens: there is no gradient of the input."""

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(3, 4), Scaled(4, 4), nn.Tanh(), nn.Linear(4, 2))
    spots = blind_spots(model, squared, torch.tensor([0, 1, 2]))
    assert spots.hidden == []
    assert spots.score == 1.0


def test_a_module_that_never_runs() -> None:
    assert hidden(within(Residual(1.0)))["1.spare"] == {"the module never runs"}


def test_a_branch_that_is_multiplied_by_0() -> None:
    found = hidden(within(Residual(0.0)))["1.inner"]
    assert found == {
        "the gradient that arrives for its output is exactly 0, since 1.gate is exactly 0",
        "its gradient is exactly 0, since 1.gate is exactly 0",
    }
    assert "1.inner" not in hidden(within(Residual(1.0)))
    assert "1.inner" not in hidden(within(Residual(0.0)), perturb=0.1)


class TwoGates(nn.Module):
    """x + a · b · tanh(W x) with a and b of 0: either alone would stop the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.a, self.b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.a * self.b * torch.tanh(self.inner(x))


def test_a_branch_that_is_multiplied_by_two_zeros() -> None:
    assert "its gradient is exactly 0, since 1.a, 1.b are exactly 0" in hidden(within(TwoGates()))["1.inner"]


def test_zeros_that_are_not_the_cause_are_not_blamed() -> None:
    class Masked(nn.Module):
        """Multiplied by a number that is no parameter; a bias of 0 stands by."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.bias = nn.Linear(4, 4), nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.bias + 0.0 * self.inner(x)

    assert "the gradient that arrives for its output is exactly 0" in hidden(within(Masked()))["1.inner"]


def test_a_unit_that_never_fires() -> None:
    found = hidden(dead())
    assert found["1"] == {"unit 3 of 1 never fires"}
    assert "unit 3 of 1 never fires" in found["0"]
    assert "its gradient is exactly 0 there: unit 3 of 1 never fires" in found["0"]


def test_an_activation_of_which_no_unit_fires() -> None:
    model = dead()
    with torch.no_grad():
        model[0].bias.fill_(-50.0)  # type: ignore[index,union-attr,operator]
    assert hidden(model)["1"] == {"none of its units ever fires", *(f"unit {unit} of 1 never fires" for unit in [0])}


def test_an_input_that_does_not_occur() -> None:
    found = hidden(Tied(), torch.tensor([[0, 1], [2, 3], [1, 0]]), lambda y: y[..., :3].square().mean())
    assert found["table"] == {"its gradient is exactly 0 there"}


def test_autograd_off_and_an_output_thrown_away() -> None:
    model, _, _ = made("detached")
    found = hidden(model)
    assert "it runs under no_grad: its output has no gradient" in found["still"]
    assert "no gradient comes back for its output: autograd finds no way from there to the loss" in found["lost"]
    assert "it has no gradient: autograd finds no way from there to the loss" in found["lost"]


def test_nothing_on_trial_upstream() -> None:
    model = within(nn.Tanh())
    model[0].requires_grad_(False)  # type: ignore[index,union-attr]
    found = hidden(model)
    assert found["1"] == {"its output needs no gradient: nothing upstream of it is on trial"}


def test_an_input_on_trial_shows_faults_in_front_of_every_parameter() -> None:
    model = within(nn.Tanh())
    model[0].requires_grad_(False)  # type: ignore[index,union-attr]
    assert "1" not in hidden(model, X.clone().requires_grad_())
    assert "0" not in hidden(within(nn.Tanh()), X.clone().requires_grad_())


def test_a_gradient_for_an_input_that_cannot_be_perturbed() -> None:
    found = hidden(nn.Sequential(ToDense(), nn.Tanh(), nn.Linear(4, 2)), X.to_sparse().requires_grad_())
    assert found["1"] == {"nothing on trial lies upstream of its output"}


class ToDense(nn.Module):
    """What a sparse tensor holds, as an ordinary one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to_dense()


def test_an_effect_below_the_noise() -> None:
    found = hidden(within(nn.BatchNorm1d(4)), mode="train")
    too_small = {reason for reason in found["0"] if "differences of J resolve" in reason}
    assert too_small
    assert all(reason.startswith("it changes no gradient by more than ") for reason in too_small)


def test_a_first_layer_has_an_input_that_needs_no_gradient() -> None:
    assert hidden(within(nn.Tanh())) == {"0": {"its input needs no gradient: the backward is never asked for it"}}


# A parameter left out of the gradient of the input --------------------------------------------------------------------


class Plain(nn.Module):
    """f(x; weight), by autograd, or with a backward whose gradient of x takes weight for `taken`."""

    def __init__(self, name: str, f: Callable[[Tensor, Tensor], Tensor], value: Tensor, taken: float | None) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(value))
        self.name, self.f, self.taken = name, f, taken

    def forward(self, x: Tensor) -> Tensor:
        weight = self.get_parameter(self.name)
        if self.taken is None:
            return self.f(x, weight)
        wrong = self.f(x, torch.full_like(weight, self.taken).detach())
        return self.f(x.detach(), weight) + wrong - wrong.detach()


LEFT_OUT: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor], float]] = {
    "a factor": ("weight", lambda x, weight: torch.tanh(x) * weight, 1.0),
    "an exponent": ("power", lambda x, power: (x.square() + 1) ** power, 1.0),
    "a bias inside": ("bias", lambda x, bias: torch.tanh(x + bias), 0.0),
    "a shift inside": ("shift_in", lambda x, shift: torch.sin(x + shift), 0.0),
    "a norm": ("weight", lambda x, weight: nn.functional.rms_norm(x, (4,), weight), 1.0),
}


@pytest.mark.parametrize("is_neutral", [True, False], ids=["at its neutral value", "elsewhere"])
@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_said_is_what_a_check_finds(case: str, is_neutral: bool) -> None:
    name, f, taken = LEFT_OUT[case]
    value = torch.full((4,), taken) if is_neutral else torch.tensor([0.5, 1.2, 0.8, 1.6])
    [row] = [
        row
        for row in blind_spots(within(Plain(name, f, value, None)), squared, X)
        if row.fault == f"{name} left out of the gradient of the input" and row.module == "1"
    ]
    really = check_module(within(Plain(name, f, value, taken)), squared, X)
    assert row.found is not is_neutral
    assert bool(really.mismatches) is row.found
    assert row.reason == ("" if row.found else f"{name} is exactly {taken:g} in every entry")


def test_a_backward_that_leaves_it_out_already_is_said_to() -> None:
    name, f, taken = LEFT_OUT["a norm"]
    model = within(Plain(name, f, torch.tensor([0.5, 1.2, 0.8, 1.6]), taken))
    assert not check_module(model, squared, X).passed
    assert hidden(model)["1"] == {"its backward leaves weight out already: see what check_module says"}


@pytest.mark.parametrize("name", ["checkpoint", "reentrant checkpoint"])
def test_a_parameter_inside_a_checkpoint(name: str) -> None:
    model, batch, _ = made(name)
    spots = blind_spots(model, squared, batch)
    assert [(row.module, row.reason) for row in spots.hidden if "left out" in row.fault][1:] == [
        ("middle.0", "weight is exactly 1 in every entry")
    ]
    assert spots.notes == ()


def test_a_random_module_draws_the_same_in_both_runs() -> None:
    def dropped(x: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, True) * weight

    value = torch.tensor([0.5, 1.2, 0.8, 1.6])
    found = [row.found for row in blind_spots(within(Plain("weight", dropped, value, None)), squared, X)]
    assert found.count(False) <= 1 + 1, "the first layer's input, and at most one lost entry"


# The whole ------------------------------------------------------------------------------------------------------------


def test_the_same_rows_every_time_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.LSTM(4, 3), First())
    squared(model(X)).backward()
    batch = X.clone()
    before = Snapshot(model=model, batch=batch)
    first = blind_spots(model, squared, batch, mode="train", seed=3)
    assert before.changes() == []
    assert blind_spots(model, squared, batch, mode="train", seed=3) == first
    assert before.changes() == []


def test_nothing_changes_where_the_users_own_code_raises() -> None:
    model, batch, calls = Recurrent(), torch.randn(2, 3, 4), iter(range(10**6))
    before = Snapshot(model=model)

    def raises_later(y: Tensor) -> Tensor:
        if next(calls) == 30:
            raise KeyboardInterrupt
        return squared(y)

    with pytest.raises(KeyboardInterrupt):
        blind_spots(model, raises_later, batch)
    assert before.changes() == []


def test_a_penalty_that_differentiates_inside_is_planted_in_the_last_backward_only() -> None:
    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            score = self.inner(x)
            [slope] = torch.autograd.grad(score.sum(), x, create_graph=True)
            return score.mean() + slope.square().sum()

    spots = blind_spots(Penalised(), lambda y: y, X)
    assert spots.score > 0.8
    assert {row.fault for row in spots if row.module == "inner.1"} >= {f"output gradient {how}" for how in WHOLE}


def test_errors_are_those_of_a_check() -> None:
    with pytest.raises(InvalidRequestError, match="model is the class Linear"):
        blind_spots(nn.Linear, squared, X)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="loss_fn must be callable"):
        blind_spots(nn.Linear(4, 2), 3, X)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="mode must be one of"):
        blind_spots(nn.Linear(4, 2), squared, X, mode="training")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="perturb must be 0 or a positive"):
        blind_spots(nn.Linear(4, 2), squared, X, perturb=-1.0)
    with pytest.raises(NonFiniteLossError):
        blind_spots(nn.Linear(4, 2), lambda y: y.sum() * float("nan"), X)


ROWS = (
    BlindSpot("", "output gradient flipped", True),
    *(BlindSpot("a", f"output gradient {how}", False, "why") for how in WHOLE),
    *(BlindSpot("a", f"gradient of {own} {how}", False, "why") for own in ("weight", "bias") for how in WHOLE),
    BlindSpot("a", "gradient of weight, entry [0, 1] lost", False, "another"),
)

PRINTED = """\
1 of 11 faults would be found
mode train, seed 3, perturb 0.1

module   would not be found                                              because
────────────────────────────────────────────────────────────────────────────────
a        output gradient, weight, bias scaled by 1.01, flipped, zeroed   why
a        gradient of weight entry [0, 1] lost                            another

notes
- a note"""


def test_how_they_print() -> None:
    assert str(BlindSpots(ROWS, "train", 3, 0.1, ("a note",))) == PRINTED
    assert str(BlindSpots(ROWS[:1], "eval", 0)) == "1 of 1 faults would be found\nmode eval, seed 0"


def test_a_long_table_is_cut() -> None:
    rows = tuple(BlindSpot(f"m{k}", "output gradient flipped", False, "why") for k in range(60))
    printed = str(BlindSpots(rows, "eval", 0))
    assert "m39 " in printed
    assert "m40 " not in printed
    assert printed.endswith("and 20 more lines; to_dict() has them all")


def test_as_a_dict() -> None:
    spots = BlindSpots(ROWS, "train", 3, 0.1, ("a note",))
    read = json.loads(json.dumps(spots.to_dict()))
    assert read["score"] == spots.score == pytest.approx(1 / 11)
    assert read["rows"][1] == {
        "module": "a",
        "fault": "output gradient scaled by 1.01",
        "found": False,
        "reason": "why",
    }
    assert (read["mode"], read["seed"], read["perturb"], read["notes"]) == ("train", 3, 0.1, ["a note"])
    assert BlindSpots((), "eval", 0).score == 1.0


def test_detached_is_a_model_that_a_check_passes() -> None:
    assert check_module(Detached(), squared, X).mismatches == []
