from __future__ import annotations

import pytest
import torch

import culprits


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_random_mistake_is_found(seed: int) -> None:
    found = culprits.trial(seed)
    assert found.outcome == "right", found
    assert 0 < found.share < 1


def test_figures_count_every_trial() -> None:
    trials = [
        culprits.Trial(seed, "module", "half detached", "1", culprit, outcome, share)
        for seed, (culprit, outcome, share) in enumerate(
            [("1", "right", 0.1), (None, "none", 0.2), (None, "unspoiled", 0)]
        )
    ]
    found = culprits.figures(trials)
    assert found["outcomes"] == {"right": 1, "none": 1, "unspoiled": 1}
    assert found["median_share_of_time"] == pytest.approx(0.15)


@pytest.mark.parametrize("mistake", culprits.MISTAKES)
def test_a_mistake_keeps_values_and_spoils_gradients(mistake: str) -> None:
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4).requires_grad_()
    y = culprits.MISTAKES[mistake](x)
    weights = torch.linspace(1, 2, 8, dtype=torch.float64).view(2, 4)
    (found,) = torch.autograd.grad((weights * y).sum(), x)
    right = weights * (1 + torch.cos(x)) if mistake == "branch under no_grad" else weights
    assert torch.equal(y, x + torch.sin(x) if mistake == "branch under no_grad" else x)
    assert not torch.allclose(found, right)
