from __future__ import annotations

import pytest

pytest.importorskip("transformers")

import gradient_flow


@pytest.mark.slow
def test_nets_that_do_not_train_are_told_by_layer(printed_by):
    lines = printed_by(gradient_flow, "--quick").splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        f"{net}, {optimizer}"
        for net in ("sigmoid, 10 layers", "ReLU, 10 layers, weights × 10")
        for optimizer in ("AdamW", "SGD")
    ]
    assert all("vanishing: layers.0, " in line for line in lines[:2])
    assert all("exploding: layers.0, " in line for line in lines[2:])
