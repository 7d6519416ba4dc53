"""A straight-through estimator, checked as it stands and as the stop-gradient that it is meant to be.

python examples/straight_through.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_gradcheck import check_module


class Quantised(nn.Module):
    """A network whose hidden units are rounded to halves; the gradient passes straight through the rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 8)
        self.decoder = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x."""
        h = self.encoder(x)
        rounded = torch.round(2 * h) / 2
        y: Tensor = self.decoder(h + (rounded - h).detach())
        return y


def main() -> None:
    """Checks the network twice."""
    torch.manual_seed(0)
    model, x = Quantised(), torch.randn(16, 6)
    for hold_detached in (False, True):
        report = check_module(model, nn.MSELoss(), (x, x), hold_detached=hold_detached)
        print(f"hold_detached={hold_detached}: {report!r}")
        print(next(note for note in report.notes if "detached at" in note))


if __name__ == "__main__":
    main()
