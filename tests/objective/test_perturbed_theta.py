from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck.objective.perturbed_theta import move_theta, on_perturbed, spread


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([1.0, 3.0], 1.0),
        ([[0.0, 0.0], [0.0, 8.0]], 12**0.5),
        ([5.0, 5.0, 5.0], 1.0),
        ([0.1] * 7, 1.0),
        ([2.5], 1.0),
        (-3.0, 1.0),
        ([], 1.0),
        ([1 + 1j, 1 - 1j], 1.0),
        ([2j, 2j], 1.0),
    ],
    ids=["two", "matrix", "constant", "constant, not exact", "one", "scalar", "none", "complex", "constant, complex"],
)
def test_the_spread_is_the_standard_deviation_and_1_where_all_entries_are_equal(
    entries: object, expected: float
) -> None:
    assert spread(torch.tensor(entries)) == pytest.approx(expected)


def moved(model: nn.Module, perturb: float = 0.1, seed: int = 0) -> list[Tensor]:
    """By how much every parameter moves."""
    model = model.double()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    move_theta(model, perturb, seed)
    return [parameter.detach() - old for parameter, old in zip(model.parameters(), before, strict=True)]


class Parameters(nn.Module):
    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        self.each = nn.ParameterList(tensors)


@pytest.mark.parametrize("perturb", [0.1, 2.0])
@pytest.mark.parametrize(
    ("tensor", "size"),
    [(torch.ones(4000), 1.0), (torch.zeros(40, 100), 1.0), (torch.arange(4000.0), 4000 / 12**0.5)],
    ids=["ones", "zeros", "a ramp"],
)
def test_entries_move_by_normal_noise_of_that_spread(tensor: Tensor, size: float, perturb: float) -> None:
    [by] = moved(Parameters(tensor), perturb)
    assert float(by.mean()) == pytest.approx(0, abs=0.05 * perturb * size)
    assert float(by.std()) == pytest.approx(perturb * size, rel=0.05)
    assert float((by.abs() < perturb * size).double().mean()) == pytest.approx(0.683, abs=0.03)


def test_a_complex_parameter_moves_in_both_parts() -> None:
    [by] = moved(Parameters(torch.ones(2000, dtype=torch.complex128)))
    assert float(by.real.std()) == pytest.approx(0.1, rel=0.1)
    assert float(by.imag.std()) == pytest.approx(0.1, rel=0.1)


def test_the_same_seed_moves_alike_and_another_one_otherwise() -> None:
    one, same, other = (moved(nn.Linear(3, 2), seed=seed) for seed in (4, 4, 5))
    for a, b, c in zip(one, same, other, strict=True):
        assert a.sign().tolist() == b.sign().tolist()
        assert not torch.equal(a, c)


def test_the_noise_is_not_what_the_seed_itself_draws() -> None:
    [by] = moved(Parameters(torch.ones(6)), perturb=1.0, seed=4)
    drawn = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert float((by - drawn).abs().min()) > 1e-3


def test_a_frozen_parameter_stays_and_takes_no_noise_from_the_others() -> None:
    both, one = Parameters(torch.ones(3), torch.ones(3)), Parameters(torch.ones(3))
    both.each[0].requires_grad_(False)
    frozen, free = moved(both)
    assert not frozen.any()
    assert torch.equal(free, moved(one)[0])


def test_a_tied_parameter_moves_once() -> None:
    net = nn.Sequential(nn.Linear(40, 40, bias=False), nn.Linear(40, 40, bias=False))
    net[1].weight = net[0].weight
    [by] = moved(net)
    assert float(by.std()) == pytest.approx(0.1 / 120**0.5, rel=0.2)  # of U(-1/√40, 1/√40)


def test_the_row_of_padding_stays() -> None:
    [by] = moved(nn.Embedding(5, 3, padding_idx=2))
    assert not by[2].any()
    assert by[[0, 1, 3, 4]].all()


def test_what_is_said() -> None:
    assert on_perturbed(0.0, 3) == ""
    assert on_perturbed(0.25, 3).startswith("checked at θ + 0.25 · s · N(0, 1), drawn from seed 3, and not at the")
