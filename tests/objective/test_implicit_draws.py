from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Beta, Dirichlet, Gamma, StudentT

from torch_gradcheck import check_module

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LAWS = {
    "gamma": lambda a: Gamma(a, 1.0).rsample().mean(),
    "dirichlet": lambda a: Dirichlet(a).rsample()[:, 0].mean(),
    "beta": lambda a: Beta(a, 2.0).rsample().mean(),
    "student": lambda a: StudentT(a + 2).rsample().square().mean(),
}


class Drawn(nn.Module):
    """A part of the loss depends on the parameters through a draw, another part does not."""

    def __init__(self, law: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.law, self.shape, self.plain = LAWS[law], nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.law(self.shape(x).exp() + 1) + self.plain(x).square().mean()


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("law", LAWS)
def test_a_draw_by_rejection_is_not_judged_by_differences(law: str) -> None:
    report = check_module(Drawn(law), lambda loss: loss, X)
    assert {row.name: str(row.status) for row in report} == {
        "shape.weight": "undecided",
        "shape.bias": "undecided",
        "plain.weight": "match",
        "plain.bias": "match",
    }
    assert "gamma or Dirichlet" in report["shape.weight"].reason
    assert report.culprit is None


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_what_lies_beside_the_draw_is_judged_as_ever(law: str) -> None:
    model = Drawn(law)
    model.plain.weight.register_hook(lambda g: 1.01 * g)
    report = check_module(model, lambda loss: loss, X)
    assert [row.name for row in report.mismatches] == ["plain.weight"]
