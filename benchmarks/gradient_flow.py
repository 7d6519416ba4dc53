"""What a monitor says of the flow of gradients, in nets that train and in nets that cannot.

    python benchmarks/gradient_flow.py              # writes benchmarks/results/gradient_flow.json, two minutes
    python benchmarks/gradient_flow.py --quick      # two nets that cannot, writes nothing

Small nets of the architectures of transformers, in training mode, each by AdamW and by SGD, with a warm-up from 0 and
gradients clipped to a norm of 1, as its Trainer does; and stacks of linear layers that are meant to fail. What a
monitor would record is recorded on some of the steps; no gradient is checked, which changes nothing here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from environment import environment
from torch_gradcheck import GradientHistory, GradientRecord
from torch_gradcheck.monitoring.magnitudes import distance
from torch_gradcheck.monitoring.observations import observed
from torch_gradcheck.monitoring.recorder import record_of

RESULTS = Path(__file__).parent / "results" / "gradient_flow.json"
STEPS = (0, 1, 2, 10, 30)
VOCABULARY, LABELS, SIDE = 60, 10, 32

Built = Callable[[], nn.Module]
Batch = Callable[[], dict[str, Tensor]]
Said = Mapping[str, Sequence[str]]

WORDS = {
    "GPT-2": ("GPT2", "ForCausalLM", {"n_embd": 32, "n_layer": 12, "n_head": 4, "n_positions": 16}),
    "Llama": ("Llama", "ForCausalLM", {"num_hidden_layers": 12}),
    "BERT": ("Bert", "ForMaskedLM", {"num_hidden_layers": 12}),
    "OPT": ("OPT", "ForCausalLM", {"num_hidden_layers": 8, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "GPT-NeoX": ("GPTNeoX", "ForCausalLM", {"num_hidden_layers": 8}),
    "Mixtral": ("Mixtral", "ForCausalLM", {"num_hidden_layers": 4, "num_key_value_heads": 2, "num_local_experts": 8}),
    "Mamba": ("Mamba", "ForCausalLM", {"num_hidden_layers": 6, "state_size": 4}),
    "Gemma": ("Gemma", "ForCausalLM", {"num_hidden_layers": 6, "num_key_value_heads": 2, "head_dim": 8}),
    "Qwen2": ("Qwen2", "ForCausalLM", {"num_hidden_layers": 8, "num_key_value_heads": 2}),
    "DeBERTa": ("DebertaV2", "ForMaskedLM", {"num_hidden_layers": 6, "relative_attention": True}),
}
"""Architectures of text: the class without its last part, the part, options besides those that all have."""

IMAGES = {
    "ViT": ("ViT", {"num_hidden_layers": 8, "patch_size": 8}),
    "BEiT, LayerScale": ("Beit", {"num_hidden_layers": 8, "patch_size": 8, "layer_scale_init_value": 1e-5}),
    "ResNet-50": ("ResNet", {"embedding_size": 8, "hidden_sizes": [16, 32, 64, 64], "depths": [3, 4, 6, 3]}),
    "RegNet": ("RegNet", {"embedding_size": 8, "hidden_sizes": [16] * 4, "depths": [1, 2, 2, 1], "groups_width": 8}),
    "ConvNeXt": ("ConvNext", {"hidden_sizes": [8, 16, 32, 32], "depths": [2, 2, 4, 2], "patch_size": 2}),
    "ConvNeXt V2": ("ConvNextV2", {"hidden_sizes": [8, 16, 32, 32], "depths": [2, 2, 4, 2], "patch_size": 2}),
    "Swin": ("Swin", {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}),
    "MobileNet V2": ("MobileNetV2", {"depth_multiplier": 0.35}),
    "PoolFormer": ("PoolFormer", {"hidden_sizes": [8, 16, 32, 32], "depths": [2, 2, 2, 2]}),
}
"""Architectures of images, for classification."""


def of_words(name: str, part: str, options: Mapping[str, Any]) -> nn.Module:
    """A language model."""
    common = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 16}
    common = {} if name == "GPT2" else common
    return _built(name, "LMHeadModel" if name == "GPT2" else part, {"vocab_size": VOCABULARY, **common, **options})


def of_images(name: str, options: Mapping[str, Any]) -> nn.Module:
    """A classifier."""
    attention = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    common = attention if "num_hidden_layers" in options else {}
    size = {"image_size": SIDE, "num_labels": LABELS}
    return _built(name, "ForImageClassification", {**size, **common, **options})


def _built(name: str, part: str, options: Mapping[str, Any]) -> nn.Module:
    model: nn.Module = getattr(transformers, name + part)(getattr(transformers, f"{name}Config")(**options))
    return model.train()


def words() -> dict[str, Tensor]:
    """Random tokens, which are their own labels."""
    tokens = torch.randint(2, VOCABULARY, (4, 12))
    return {"input_ids": tokens, "labels": tokens}


def images() -> dict[str, Tensor]:
    """Noise whose mean tells the label."""
    labels = torch.randint(0, LABELS, (6,))
    return {"pixel_values": torch.randn(6, 3, SIDE, SIDE) + labels[:, None, None, None] / 3, "labels": labels}


class Stack(nn.Module):
    """Linear layers with an activation between them, over the mean of the image's rows.

    Their weights are those of torch or, with a scale, so many times those of He et al. (2015).
    """

    def __init__(self, depth: int, activation: Callable[[], nn.Module], scale: float = 0.0) -> None:
        super().__init__()
        hidden = [nn.Linear(SIDE, SIDE) for _ in range(depth)]
        self.layers = nn.Sequential(*[each for layer in hidden for each in (layer, activation())])
        self.head = nn.Linear(SIDE, LABELS)
        for layer in [*hidden, self.head] if scale else ():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.weight.data *= scale

    def forward(self, pixel_values: Tensor, labels: Tensor) -> Any:
        """An output as those of transformers, with the loss."""
        scores = self.head(self.layers(pixel_values.mean((1, 2))))
        return SimpleNamespace(loss=nn.functional.cross_entropy(scores, labels))


PLANTED: dict[str, Built] = {
    "sigmoid, 8 layers": lambda: Stack(8, nn.Sigmoid),
    "sigmoid, 10 layers": lambda: Stack(10, nn.Sigmoid),
    "sigmoid, 20 layers": lambda: Stack(20, nn.Sigmoid),
    "ReLU, 10 layers, weights × 0.1": lambda: Stack(10, nn.ReLU, 0.1),
    "ReLU, 10 layers, weights × 10": lambda: Stack(10, nn.ReLU, 10.0),
    "ReLU, 10 layers, weights × 5": lambda: Stack(10, nn.ReLU, 5.0),
}
"""Nets that do not train."""


def said_of(build: Built, batch: Batch, optimizer: Callable[..., torch.optim.Optimizer], limit: float) -> list[str]:
    """What is observed on the last of the steps, and on each of them alone."""
    torch.manual_seed(0)
    model = build()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    update = optimizer(trained.values())
    warm_up = torch.optim.lr_scheduler.LambdaLR(update, lambda step: min(1.0, step / 5))
    rows: list[GradientRecord] = []
    for step in range(max(STEPS) + 1):
        update.zero_grad()
        model(**batch()).loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), limit)
        now = [record_of(step, name, each) for name, each in trained.items()] if step in STEPS else []
        before = {row.name: trained[row.name].detach().clone() for row in now}
        update.step()
        warm_up.step()
        rows += [replace(row, update_norm=distance(trained[row.name], before[row.name])) for row in now]
    history = GradientHistory(rows)
    found = [*observed(history), *[each for step in history.steps for each in observed(history.at(step))]]
    return list(dict.fromkeys([f"{each.kind}: {', '.join(each.layers)}" for each in found]))


def said_by(nets: Mapping[str, tuple[Built, Batch]], limit: float = 1.0) -> dict[str, list[str]]:
    """Net and optimizer → what is observed of them."""
    optimizers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-2),
    }
    said = {}
    for name, (build, batch) in nets.items():
        for optimizer, made in optimizers.items():
            said[f"{name}, {optimizer}"] = found = said_of(build, batch, made, limit)
            print(f"{name}, {optimizer}: {'; '.join(found) or 'nothing'}")
    return said


def main() -> None:
    """Reads the command line, trains, prints what is observed and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two nets; writes nothing")
    quick = parser.parse_args().quick

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    right: dict[str, tuple[Built, Batch]] = {
        **{name: (lambda facts=facts: of_words(*facts), words) for name, facts in WORDS.items()},  # type: ignore[misc]
        **{name: (lambda facts=facts: of_images(*facts), images) for name, facts in IMAGES.items()},  # type: ignore[misc]
    }
    wrong = {name: (build, images) for name, build in PLANTED.items()}
    if quick:
        right, wrong = {}, dict(list(wrong.items())[1:5:3])
    found = {"train": said_by(right), "do not": said_by(wrong, limit=float("inf"))}
    if not quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"environment": environment(), "observed": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
