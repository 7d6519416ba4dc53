"""θ moved at random for a whole check, away from weights of exactly 1 or 0 that hide how they enter."""

from __future__ import annotations

import torch
from torch import nn

from torch_gradcheck.objective.by_design import padding_coordinates
from torch_gradcheck.objective.perturbation import real_view

STREAM = 0x7E7A
"""Added to the seed: the numbers drawn from the seed itself may be the model's own weights, or its batch."""


def move_theta(model: nn.Module, perturb: float, seed: int) -> None:
    """θ becomes what `moved_theta` says. Writes to the parameters' `.data`."""
    for parameter, moved in moved_theta(model, perturb, seed).items():
        parameter.data.copy_(moved)


def moved_theta(model: nn.Module, perturb: float, seed: int) -> dict[torch.Tensor, torch.Tensor]:
    """θ + perturb · s · N(0, 1) by parameter, in its own dtype; s is as `spread` says.

    Parameters move that require a gradient, whether they are on trial or not, so that a choice of them leaves θ what it
    is; tied ones once. Frozen ones stay: they are constants of J. So does the row of an embedding's `padding_idx`.
    Complex ones move in both parts.

    Args:
        model: whose θ it is.
        perturb: how far, at least 0.
        seed: the same seed gives the same θ, on every device.
    """
    generator = torch.Generator("cpu").manual_seed((seed + STREAM) % 2**63)
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return {parameter: _moved(model, parameter, perturb, generator) for parameter in moving}


def _moved(model: nn.Module, parameter: torch.Tensor, perturb: float, generator: torch.Generator) -> torch.Tensor:
    numbers = real_view(parameter.detach().resolve_conj())
    noise = torch.randn(numbers.shape, generator=generator, dtype=torch.float64, device="cpu")
    noise.view(-1)[torch.from_numpy(padding_coordinates(model, parameter))] = 0
    moved = numbers + perturb * spread(parameter) * noise.to(numbers)
    return torch.view_as_complex(moved) if parameter.is_complex() else moved


def spread(tensor: torch.Tensor) -> float:
    """The standard deviation √(mean |x − mean x|²) of the entries; 1 where all of them are equal, or there are none."""
    entries = tensor.detach()
    if not entries.numel() or bool((entries == entries.reshape(-1)[0]).all()):
        return 1.0
    return float((entries - entries.mean()).abs().square().mean().sqrt())


def on_perturbed(perturb: float, seed: int) -> str:
    """The note on where the check was made; "" where that is the model's own θ."""
    if not perturb:
        return ""
    return (
        f"checked at θ + {perturb:g} · s · N(0, 1), drawn from seed {seed}, and not at the model's own θ; "
        "s is the standard deviation of each tensor, 1 where it is constant"
    )
