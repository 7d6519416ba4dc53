"""Tiny models of transformers with random weights, their batches, and which of their parameters to check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, dict[str, Tensor]]


@dataclass(frozen=True)
class Pretrained:
    id: str
    build: Callable[[], Built]
    include: list[str]


def _tokens(vocabulary: int, length: int = 4) -> Tensor:
    return torch.randint(1, vocabulary, (2, length))


def _llama() -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        attention_dropout=0.1,
    )
    tokens = _tokens(10)
    return LlamaForCausalLM(config), {"input_ids": tokens, "labels": tokens}


def _bert() -> Built:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=10,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        num_labels=3,
    )
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    batch = {"input_ids": _tokens(10), "attention_mask": mask, "labels": torch.tensor([2, 0])}
    return BertForSequenceClassification(config), batch


def _gpt2() -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=10, n_positions=8, n_embd=8, n_layer=1, n_head=2, n_inner=8, bos_token_id=1, eos_token_id=2
    )
    tokens = _tokens(10)
    return GPT2LMHeadModel(config), {"input_ids": tokens, "labels": tokens}


def _t5() -> Built:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=10, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0, dropout_rate=0.1
    )
    return T5ForConditionalGeneration(config), {"input_ids": _tokens(10), "labels": _tokens(10, 3)}


def _vit() -> Built:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=4,
        patch_size=2,
        num_channels=1,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=3,
    )
    batch = {"pixel_values": torch.randn(2, 1, 4, 4), "labels": torch.tensor([2, 0])}
    return ViTForImageClassification(config), batch


PRETRAINED = [
    Pretrained("llama", _llama, ["*norm*", "*layers.0*k_proj*"]),
    Pretrained("bert", _bert, ["*LayerNorm*", "*key.bias", "classifier*"]),
    Pretrained("gpt2", _gpt2, ["*ln_*", "*c_attn.bias"]),
    Pretrained("t5", _t5, ["*decoder*layer_norm*", "*encoder*relative*"]),
    Pretrained("vit", _vit, ["*layernorm*", "*patch*bias", "*token*", "classifier.bias"]),
]


def built(model: Pretrained) -> Built:
    """The model and its batch, weights drawn ten times larger than usual so that no gradient is tiny."""
    torch.manual_seed(6)
    network, batch = model.build()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4)
            elif "bias" in name:
                parameter.normal_(std=0.1)
    return network, batch


def loss_of(output: Any) -> Tensor:
    loss: Tensor = output.loss
    return loss
