"""The arguments of torch.autograd.gradcheck that say what is tried, and how closely."""

from __future__ import annotations

from dataclasses import dataclass

from torch_gradcheck.drop_in.failure import ContradictoryFlagsError

TORCH_EPS = 1e-6
"""The step that torch takes by default. Given, it means no step in particular: one is chosen."""


@dataclass(frozen=True)
class Options:
    """What is asked of a function; see `gradcheck` for the meaning of each."""

    eps: float
    atol: float
    rtol: float
    nondet_tol: float
    check_undefined_grad: bool
    check_grad_dtypes: bool
    check_batched_grad: bool
    check_batched_forward_grad: bool
    check_forward_ad: bool
    check_backward_ad: bool
    fast_mode: bool
    masked: bool

    def __post_init__(self) -> None:
        if not (self.check_forward_ad or self.check_backward_ad):
            raise ContradictoryFlagsError(
                "Expected at least one of check_forward_ad or check_backward_ad to be True: there is nothing to check."
            )
        if self.check_batched_grad and not self.check_backward_ad:
            raise ContradictoryFlagsError("Setting check_batched_grad=True requires check_backward_ad to be True.")
        if self.check_batched_forward_grad and not self.check_forward_ad:
            raise ContradictoryFlagsError(
                "Setting check_batched_forward_grad=True requires check_forward_ad to be True."
            )

    @property
    def step(self) -> float | None:
        """The step of the differences; None where it is chosen from the noise of the function."""
        return None if self.eps == TORCH_EPS else self.eps
