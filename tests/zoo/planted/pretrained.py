"""Mistakes in tiny models of transformers: one module in the middle of each has a backward of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from tests.zoo.planted.row import HandWritten, Planted, Problem, plant
from tests.zoo.transformers_models import PRETRAINED, built, loss_of


class InsteadOf(nn.Module):
    """A module's forward under another backward: backward(g, x)."""

    def __init__(self, module: nn.Module, backward: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.derivative = module, backward

    def forward(self, x: Tensor) -> Tensor:
        return HandWritten.apply(self.module, lambda g, a: (self.derivative(g, a),), x)


def spoiled(
    model: str, path: str, backward: Callable[[Tensor, Tensor], Tensor], *checked: str
) -> Callable[[bool], Problem]:
    """The pretrained `model`, its module at `path` spoiled when wrong, everything but `checked` frozen."""

    def build(wrong: bool) -> Problem:
        network, batch = built(next(each for each in PRETRAINED if each.id == model))
        if wrong:
            parent, _, name = path.rpartition(".")
            holder = network.get_submodule(parent)
            setattr(holder, name, InsteadOf(getattr(holder, name), backward))
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in checked)
        return Problem(network, loss_of, (batch,))

    return build


def relu_slope(g: Tensor, x: Tensor) -> Tensor:
    return g * (x > 0)


def doubled(g: Tensor, x: Tensor) -> Tensor:
    return 2 * g


def pretrained_bugs() -> Iterator[Planted]:
    layers = "model.layers.1"
    checked = (f"{layers}.post_attention_layernorm.weight", "model.norm.weight")
    yield plant(
        "llama-activation",
        spoiled("llama", f"{layers}.mlp.act_fn", relu_slope, *checked),
        checked[:1],
        "slope",
        culprit=f"{layers}.mlp.act_fn",
    )
    part = "bert.encoder.layer.0"
    checked = (f"{part}.intermediate.dense.bias", f"{part}.output.dense.bias", "classifier.bias")
    act = f"{part}.intermediate.intermediate_act_fn"
    yield plant("bert-activation", spoiled("bert", act, relu_slope, *checked), checked[:1], "slope", culprit=act)
    part = "transformer.h.0"
    checked = (f"{part}.mlp.c_fc.bias", f"{part}.mlp.c_proj.bias")
    yield plant(
        "gpt2-dropout-doubles",
        spoiled("gpt2", f"{part}.mlp.dropout", doubled, *checked),
        checked,
        "scaled",
        culprit=f"{part}.mlp.dropout",
    )
    act = "vit.layers.0.mlp.activation_fn"
    checked = ("vit.embeddings.cls_token", "vit.layers.0.mlp.fc1.bias", "classifier.bias")
    yield plant("vit-activation", spoiled("vit", act, relu_slope, *checked), checked[:2], "slope", culprit=act)
    act = "decoder.block.0.layer.2.DenseReluDense.dropout"
    checked = ("decoder.block.0.layer.0.layer_norm.weight", "encoder.block.0.layer.0.layer_norm.weight")
    checked = (*checked, "decoder.final_layer_norm.weight")
    yield plant("t5-dropout-doubles", spoiled("t5", act, doubled, *checked), checked[:2], "propagated", culprit=act)
