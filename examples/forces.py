"""Energies and forces of a small atomistic net: a kernel whose backward is right, and whose double backward is not.

A net that is trained on forces, F = −∂E/∂r, differentiates its own gradient. `RadialBasis` gives the right gradient, so
energies and forces come out right, and nothing raises. But it keeps a slope that it has computed in its forward, and
autograd takes that for a constant: the gradient of a loss on forces is wrong. A check with order=2 finds it.

python examples/forces.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torch_gradcheck import Report, check_module

ATOMS, CLUSTERS, CUTOFF, WIDTH = 5, 6, 3.0, 4.0


class RadialBasis(torch.autograd.Function):
    """exp(−WIDTH (d − c)²) of every distance d and centre c, with its slope kept for the backward."""

    @staticmethod
    def forward(ctx: Any, distances: Tensor, centres: Tensor) -> Tensor:
        """Shape (..., centres)."""
        off = distances.unsqueeze(-1) - centres
        basis = torch.exp(-WIDTH * off**2)
        ctx.save_for_backward(-2 * WIDTH * off * basis)  # less work for the backward
        return basis

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The right gradients, without a path from them to distances and centres."""
        (slope,) = ctx.saved_tensors
        return (grad * slope).sum(-1), -(grad * slope).sum((0, 1, 2))


class RepairedRadialBasis(RadialBasis):
    """The same, with nothing kept but inputs and the output, to which autograd knows the way."""

    @staticmethod
    def forward(ctx: Any, distances: Tensor, centres: Tensor) -> Tensor:
        """Shape (..., centres)."""
        basis = torch.exp(-WIDTH * (distances.unsqueeze(-1) - centres) ** 2)
        ctx.save_for_backward(distances, centres, basis)
        return basis

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The right gradients, made of what has a graph."""
        distances, centres, basis = ctx.saved_tensors
        slope = -2 * WIDTH * (distances.unsqueeze(-1) - centres) * basis
        return (grad * slope).sum(-1), -(grad * slope).sum((0, 1, 2))


class Energy(nn.Module):
    """The energy of clusters of atoms: messages between atoms closer than CUTOFF, then a sum over atoms.

    The centres of the radial basis are learnt with the rest.
    """

    def __init__(self, basis: type[RadialBasis], centres: int = 6, features: int = 8) -> None:
        super().__init__()
        self.basis = basis
        self.centres = nn.Parameter(torch.linspace(0.8, CUTOFF, centres))
        self.first = nn.Linear(centres, features)
        self.filter = nn.Linear(centres, features)
        self.readout = nn.Sequential(nn.Linear(features, features), nn.SiLU(), nn.Linear(features, 1))

    def forward(self, positions: Tensor) -> Tensor:
        """Energies, shape (clusters,), of positions of shape (clusters, atoms, 3)."""
        distances, others = _distances(positions)
        cutoff = torch.where(others, 0.5 * (torch.cos(torch.pi * distances.clamp(max=CUTOFF) / CUTOFF) + 1), 0)
        near = self.basis.apply(distances, self.centres) * cutoff.unsqueeze(-1)  # type: ignore[no-untyped-call]
        atoms = torch.tanh(self.first(near.sum(-2)))
        messages = torch.einsum("bijf,bjf->bif", self.filter(near) * cutoff.unsqueeze(-1), atoms)
        energies: Tensor = self.readout(atoms + messages).sum((-2, -1))
        return energies


class Forces(nn.Module):
    """Energies and forces, of one energy."""

    def __init__(self, energy: Energy) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies, and the forces −∂E/∂r, of the shape of the positions."""
        positions = positions.detach().requires_grad_()
        energies = self.energy(positions)
        (gradient,) = torch.autograd.grad(energies.sum(), positions, create_graph=True)
        return energies, -gradient


def _distances(positions: Tensor) -> tuple[Tensor, Tensor]:
    """|rᵢ − rⱼ|, 1 where i = j, and where i ≠ j."""
    others = ~torch.eye(ATOMS, dtype=torch.bool).expand(len(positions), -1, -1)
    squares = (positions.unsqueeze(2) - positions.unsqueeze(1)).square().sum(-1)
    return torch.where(others, squares, 1).sqrt(), others


def morse(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Energies Σ (1 − exp(−3 (d − 1.1)))² over pairs, and the forces: what is to be learnt."""
    positions = positions.detach().requires_grad_()
    distances, others = _distances(positions)
    energies = torch.where(others, (1 - torch.exp(-3 * (distances - 1.1))) ** 2, 0).sum((1, 2)) / 2
    (gradient,) = torch.autograd.grad(energies.sum(), positions)
    return energies.detach(), -gradient


def clusters() -> Tensor:
    """Positions around those of least energy, a double pyramid, shape (CLUSTERS, ATOMS, 3)."""
    ring = torch.tensor([[0.0, 0.64, 0.0], [0.555, -0.32, 0.0], [-0.555, -0.32, 0.0]])
    best = torch.cat([ring, torch.tensor([[0.0, 0.0, 0.9], [0.0, 0.0, -0.9]])])
    return best + 0.08 * torch.randn(CLUSTERS, ATOMS, 3, generator=torch.Generator().manual_seed(0))


def energy_loss(energies: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    """The mean square error of the energies."""
    return (energies - targets[0]).square().mean()


def force_loss(outputs: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """That, and the mean square error of the forces."""
    return energy_loss(outputs[0], targets) + (outputs[1] - targets[1]).square().mean()


def reports(basis: type[RadialBasis]) -> Iterator[tuple[str, Report]]:
    """The energies checked in first and in second order, and the loss on forces, each with a title."""
    torch.manual_seed(0)
    energy, positions = Energy(basis), clusters()
    batch = (positions, morse(positions))
    yield "energies", check_module(energy, energy_loss, batch)
    yield "energies, order=2", check_module(energy, energy_loss, batch, order=2)
    yield "forces", check_module(Forces(energy), force_loss, batch)


def trained(basis: type[RadialBasis], steps: int = 150) -> float:
    """The loss on energies and forces after so many steps."""
    torch.manual_seed(0)
    model, positions = Forces(Energy(basis)), clusters()
    targets = morse(positions)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = force_loss(model(positions), targets)
        loss.backward()
        optimizer.step()
    return loss.item()


def main() -> None:
    """Checks and trains both nets."""
    for basis in (RadialBasis, RepairedRadialBasis):
        print(f"{basis.__name__}: loss {trained(basis):.3f} after 150 steps")
        for title, report in reports(basis):
            print(f"  {title}: {report!r}")
            if report.order == 2 and not report.passed:
                print(f"    {report.notes[0]}")


if __name__ == "__main__":
    main()
