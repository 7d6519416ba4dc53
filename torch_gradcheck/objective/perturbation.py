"""θ moved as a whole along a random direction, and put back."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class RandomDirection:
    """A direction in θ: every real number in it moves by ± its size, signs drawn from `seed`.

    Args:
        parameters: the tensors that make up θ, as they are now; complex ones move in both parts.
        seed: the same seed gives the same signs, on every device.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], seed: int) -> None:
        self._tensors = [real_view(parameter.data) for parameter in parameters]
        generator = torch.Generator("cpu").manual_seed(seed)
        self._velocities = [_velocity(tensor, generator) for tensor in self._tensors]
        self._before = [tensor.clone() for tensor in self._tensors]

    def at(self, distance: float) -> _At:
        """θ + distance · direction inside the block; θ, by assignment, after it."""
        return _At(self, distance)

    def move(self, distance: float) -> None:
        """From θ to θ + distance · direction."""
        if self._tensors:
            torch._foreach_add_(self._tensors, self._velocities, alpha=distance)

    def put_back(self) -> None:
        """From wherever it is to θ."""
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._before)


class _At:
    """A class and not a generator, which an interrupt could leave behind, to put θ back at some later time."""

    def __init__(self, direction: RandomDirection, distance: float) -> None:
        self._direction, self._distance = direction, distance

    def __enter__(self) -> None:
        try:
            self._direction.move(self._distance)
        except BaseException:
            self._direction.put_back()
            raise

    def __exit__(self, *exception: object) -> None:
        self._direction.put_back()


def real_view(tensor: torch.Tensor) -> torch.Tensor:
    """The real numbers that a tensor holds, sharing its memory; a complex tensor gets a last axis (real, imaginary)."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _velocity(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    signs = torch.randint(0, 2, tensor.shape, generator=generator, device="cpu").to(tensor) * 2 - 1
    return signs * sizes(tensor)


def sizes(tensor: torch.Tensor) -> torch.Tensor:
    """|x| of every entry; for a zero the root mean square of the tensor, and 1 where all of it is zero."""
    absolute = tensor.abs()
    typical = absolute.square().mean().sqrt() if tensor.numel() else absolute.new_ones(())
    return torch.where(absolute > 0, absolute, torch.where(typical > 0, typical, torch.ones_like(typical)))
