"""Modules whose gradient departs from the derivative on purpose, as torch's documentation says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Indices
from torch_gradcheck.torch_internals.modules import named_modules, spectral_norms

Embedding = nn.Embedding | nn.EmbeddingBag


def padding_coordinates(model: nn.Module, parameter: torch.Tensor) -> Indices:
    """Coordinates of `parameter` that an embedding never trains: the row of its `padding_idx`.

    J depends on that row where the batch holds padding, and autograd gives it no gradient, by definition of the module.
    """
    rows = {
        embedding.padding_idx
        for embedding in model.modules()
        if isinstance(embedding, Embedding)
        if embedding.weight is parameter and embedding.padding_idx is not None
    }
    width = parameter.numel() // max(len(parameter), 1) * (2 if parameter.is_complex() else 1) if rows else 0
    spans = [np.arange(row * width, (row + 1) * width, dtype=np.int64) for row in sorted(rows)]
    return np.concatenate(spans) if spans else np.empty(0, dtype=np.int64)


def remarks_on(model: nn.Module) -> list[str]:
    """A sentence for the report on each module whose gradient is, in part or in whole, not the derivative."""
    of_embeddings = [remark for name, embedding in _embeddings(model) for remark in _remarks(name, embedding)]
    of_norms = [
        f"the power iteration of {name or 'the model'} (spectral norm) was held still: "
        "torch takes its vectors for constants, on purpose"
        for name, module in named_modules(model)
        if module.training and list(spectral_norms(module))
    ]
    return of_embeddings + of_norms


def _remarks(name: str, embedding: Embedding) -> Iterator[str]:
    if embedding.padding_idx is not None:
        yield (
            f"row {embedding.padding_idx} of {name}.weight was left out: it is the embedding's padding_idx, "
            "which torch gives no gradient on purpose"
        )
    if embedding.scale_grad_by_freq:
        yield f"{name} has scale_grad_by_freq=True: torch divides its gradient by how often a token occurs, on purpose"
    if embedding.max_norm is not None:
        yield f"{name} has max_norm={embedding.max_norm}: it rescales rows in the forward, which autograd does not see"


def _embeddings(model: nn.Module) -> Iterator[tuple[str, Embedding]]:
    for name, module in named_modules(model):
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            yield name or "the model", module
