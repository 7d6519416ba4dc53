from __future__ import annotations

import numpy as np
import pytest
import torch

from torch_gradcheck.objective.perturbation import (
    PIECE,
    MovedCoordinate,
    RandomDirection,
    coordinate_views,
    real_view,
    sizes,
)

TENSORS = {
    "matrix": torch.arange(6.0).reshape(2, 3),
    "not contiguous": torch.arange(6.0).reshape(2, 3).T,
    "one number": torch.tensor(3.0),
    "complex": torch.complex(torch.arange(4.0), -torch.arange(4.0)).reshape(2, 2),
    "one complex number": torch.tensor(1 + 2j),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_coordinates_count_the_real_numbers_in_c_order(tensor: torch.Tensor) -> None:
    x = tensor.clone()
    flat = real_view(x).reshape(-1).tolist()
    views = list(coordinate_views(x, np.arange(len(flat))))
    assert [view.item() for view in views] == flat
    views[-1].fill_(7)
    assert real_view(x).reshape(-1)[-1] == 7  # the memory is that of x


def test_a_lazily_conjugated_tensor_has_no_real_view() -> None:
    x = torch.ones(2, dtype=torch.complex64).conj()
    with pytest.raises(RuntimeError, match="resolve_conj"):
        real_view(x)
    assert real_view(x.resolve_conj()).shape == (2, 2)


def test_a_coordinate_moves_by_the_step_that_its_precision_allows_and_comes_back() -> None:
    x = torch.ones(2, dtype=torch.float32)
    (coordinate,) = coordinate_views(x, np.array([1]))
    with MovedCoordinate(coordinate, 1e-3) as taken:
        assert x.tolist() == [1, 1 + taken]
        assert taken != 1e-3
        assert taken == pytest.approx(1e-3, rel=1e-4)
    assert x.tolist() == [1, 1]


def test_a_coordinate_comes_back_to_the_bit_where_subtraction_would_not_bring_it_back() -> None:
    before = 0.1
    assert before + 1e16 - 1e16 != before
    x = torch.tensor([before], dtype=torch.float64)
    (coordinate,) = coordinate_views(x, np.array([0]))
    with pytest.raises(ZeroDivisionError), MovedCoordinate(coordinate, 1e16):
        raise ZeroDivisionError
    assert x.item() == before


def test_an_interrupt_while_a_coordinate_moves_leaves_it_where_it_was() -> None:
    class Interrupted:
        """Ctrl-C right after the write."""

        held, asked = 1.0, 0

        def item(self) -> float:
            self.asked += 1
            if self.asked > 1:
                raise KeyboardInterrupt
            return self.held

        def fill_(self, value: float) -> None:
            self.held = value

    coordinate = Interrupted()
    with pytest.raises(KeyboardInterrupt), MovedCoordinate(coordinate, 1.0):  # type: ignore[arg-type]
        pass
    assert coordinate.held == 1.0


def test_a_moved_coordinate_leaves_the_version_of_its_parameter_alone() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    loss = (parameter**2).sum()
    (coordinate,) = coordinate_views(parameter.data, np.array([0]))
    with MovedCoordinate(coordinate, 1.0):
        assert parameter.tolist() == [2, 1]
    loss.backward()  # autograd notices no write


def test_a_direction_moves_every_number_by_its_size_and_puts_it_back() -> None:
    x, c = torch.tensor([3.0, -4.0, 0.0]), torch.tensor([1 + 2j])
    direction = RandomDirection([x, c], seed=0)
    with direction.at(0.5):
        assert (x - torch.tensor([3.0, -4.0, 0.0])).abs().tolist() == pytest.approx([1.5, 2, 0.5 * (25 / 3) ** 0.5])
        assert (torch.view_as_real(c)[0] - torch.tensor([1.0, 2.0])).abs().tolist() == [0.5, 1.0]
    assert x.tolist() == [3, -4, 0]
    assert c.tolist() == [1 + 2j]


def test_the_size_of_a_zero_is_that_of_its_tensor_or_one() -> None:
    assert sizes(torch.tensor([3.0, 0.0])).tolist() == pytest.approx([3, 4.5**0.5])
    assert sizes(torch.zeros(2)).tolist() == [1, 1]
    assert sizes(torch.zeros(0)).tolist() == []


def test_the_slope_along_a_direction_is_that_of_the_gradients() -> None:
    x = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    c = torch.tensor([1.0 + 2.0j], dtype=torch.complex128, requires_grad=True)

    def value() -> torch.Tensor:
        return (x**2).sum() + (c * c).real.sum() + (c.imag**3).sum()

    direction = RandomDirection([x, c], seed=3)
    predicted = direction.slope(torch.autograd.grad(value(), [x, c]))
    values = []
    for step in (1e-6, -1e-6):
        with direction.at(step):
            values.append(float(value().detach()))
    assert predicted == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-8)
    assert direction.slope([None, None]) == 0.0


def test_a_tangent_is_how_far_a_step_of_one_goes() -> None:
    c = torch.tensor([1.0 + 2.0j], dtype=torch.complex128)
    direction = RandomDirection([c], seed=0)
    before, tangent = c.clone(), direction.tangent(0, like=c).clone()
    with direction.at(1.0):
        assert torch.equal(c, before + tangent)


def test_a_direction_reads_what_parameters_hold_where_the_caller_has_it() -> None:
    x, c = torch.tensor([3.0, -4.0, 0.0]), torch.tensor([1 + 2j])
    lent = [x.double(), c.to(torch.complex128)]
    copying, reading = RandomDirection(lent, seed=1), RandomDirection(lent, seed=1, before=[x, c])
    with copying.at(0.5):
        expected = [each.clone() for each in lent]
    with reading.at(0.5):
        assert all(torch.equal(*pair) for pair in zip(lent, expected, strict=True))
    assert torch.equal(lent[0], x.double())
    assert torch.equal(lent[1], c.to(torch.complex128))


def test_long_tensors_move_a_piece_at_a_time_as_short_ones_do() -> None:
    whole = torch.arange(-1.0, 2 * PIECE, dtype=torch.float64)
    direction = RandomDirection([whole], seed=0)
    before = whole.clone()
    with direction.at(0.25):
        assert torch.equal((whole - before).abs(), 0.25 * sizes(before))
        assert not torch.equal(whole - before, 0.25 * sizes(before))
    assert torch.equal(whole, before)
