"""The quantities between θ and J are all numbers that its operations give, wherever the parameters are."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_gradcheck.engines.traced.engine import TracedEngine


def test_they_are_what_the_operations_give_at_what_the_parameters_hold() -> None:
    w, seen = torch.tensor([1.0, -2.0], dtype=torch.float64), []

    def J() -> Tensor:
        y = torch.relu(w).view(2, 1)  # a view holds no numbers of its own
        largest, _ = y.max(0)  # a place is none
        seen[:] = [y.detach().clone(), largest.detach().clone(), (3 * largest).detach().clone()]
        return (3 * largest).sum()

    record = TracedEngine(J, [w])
    for values in ([1.0, -2.0], [0.5, 7.0]):
        w.copy_(torch.tensor(values))
        J()
        found = record.quantities()
        assert len(found) == 4
        assert all(torch.equal(x.flatten(), y.flatten()) for x, y in zip(found, seen, strict=False))
    w.zero_()
    assert found[0].tolist() == [0.5, 7.0], "they are copies"


def test_complex_ones_are_real_numbers() -> None:
    w = torch.tensor([1.0 + 2.0j], dtype=torch.complex128)
    product, *_ = TracedEngine(lambda: (w * 1j).abs().sum(), [w]).quantities()
    assert product.tolist() == [[-2.0, 1.0]]
