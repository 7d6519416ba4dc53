"""What a layer wants, where its input is on another device or in another precision, which tests have none of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torch_gradcheck.objective.wants import wants_of, wants_of_function

LINEAR = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("layer", "x", "words"),
    [
        (LINEAR, torch.ones(2, 3, device="meta"), "the layer is on cpu and its input on meta: move one of them"),
        (LINEAR, torch.ones(2, 3).half(), "the layer is in torch.float32 and its input in torch.float16"),
        (LINEAR, torch.ones(2, 3).long(), "in floating point: convert it by .float()"),
        (nn.Conv1d(3, 4, 2), torch.ones(2, 3), "its weight of shape (4, 3, 2) wants (N, 3, length)"),
        (nn.Embedding(4, 2), torch.ones(0).long(), "it has 4 rows, for indices from 0 to 3"),
        (nn.GRU(3, 2, batch_first=True), torch.ones(2, 4, 5), "it wants (batch, length, 3)"),
    ],
    ids=["device", "precision", "integers", "convolution", "no indices", "GRU"],
)
def test_what_a_layer_wants(layer: nn.Module, x: torch.Tensor, words: str) -> None:
    assert words in wants_of(layer, (x,))


def test_what_is_not_known_is_not_told() -> None:
    assert wants_of(nn.ReLU(), (torch.ones(2),)) == ""
    assert wants_of_function("torch.cat", [torch.ones(2)]) == ""
    assert wants_of(LINEAR, ("x",)) == "; it wants a tensor"


def test_targets_of_one_sample() -> None:
    told = wants_of_function("torch.nn.functional.cross_entropy", [torch.ones(3), torch.tensor(4)])
    assert told.startswith(": 3 classes, and targets from 4 to 4; it takes logits")
