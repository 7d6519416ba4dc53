"""Spectral norms in training mode: their power iterations are held still while J is differentiated."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from torch_gradcheck.torch_internals.modules import singular_vectors, spectral_norms


class PowerIterations:
    """The power iterations of spectral norms in training mode, which move singular vectors as the weight moves.

    Torch takes those vectors for constants in the backward. So must J: they are held still while it is differentiated.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        found = [(module, norm) for module in modules for norm in spectral_norms(module)]
        self._norms = [(norm, norm.n_power_iterations) for _, norm in found]
        self._vectors = {id(vector) for module, norm in found for vector in singular_vectors(module, norm)}

    def moves(self, buffer: Tensor) -> bool:
        """Whether it is one of the vectors: the forward that moved them computed with what they hold now."""
        return id(buffer) in self._vectors

    def hold(self) -> None:
        """No iteration takes place, whatever the mode."""
        for norm, _ in self._norms:
            norm.n_power_iterations = 0

    def restore(self) -> None:
        """They take place as before."""
        for norm, count in self._norms:
            norm.n_power_iterations = count
