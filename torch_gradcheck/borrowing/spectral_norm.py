"""Power iterations of spectral norms in training mode, turned off while J is differentiated."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from torch_gradcheck.torch_internals.modules import singular_vectors, spectral_norms


class PowerIterations:
    """The power iterations of spectral norms, which update singular vectors u and v in every forward in training mode.

    Torch takes u and v for constants in the backward. So must J: the iterations are off while it is differentiated.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        found = [(module, norm) for module in modules for norm in spectral_norms(module)]
        self._norms = [(norm, norm.n_power_iterations) for _, norm in found]
        self._vectors = {id(vector) for module, norm in found for vector in singular_vectors(module, norm)}

    def moves(self, buffer: Tensor) -> bool:
        """Whether `buffer` is a singular vector of a spectral norm.

        Such a buffer is not to be put back to the start of a step: the step's forward updated it first, and then used
        the new value.
        """
        return id(buffer) in self._vectors

    def hold(self) -> None:
        """Turns the iterations off."""
        for norm, _ in self._norms:
            norm.n_power_iterations = 0

    def restore(self) -> None:
        """Turns the iterations on again, as many a forward as before."""
        for norm, count in self._norms:
            norm.n_power_iterations = count
