"""What layers and losses of torch take: the sentence that a refusal adds to what they were given."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torch_gradcheck.objective.given import of_tensor

CLASSES = (
    "it takes logits of shape (N, C, ...) and, as targets, class indices from 0 to C - 1 of dtype int64 and "
    "shape (N, ...), or probabilities in floating point of the logits' own shape"
)

SAME_SHAPE = "it takes an output and a target of the same shape, both in floating point"

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

OF_FUNCTIONS = {
    "cross_entropy": CLASSES,
    "cross_entropy_loss": CLASSES,
    "nll_loss": "it takes log-probabilities of shape (N, C, ...) and int64 class indices of shape (N, ...)",
    "nll_loss_nd": "it takes log-probabilities of shape (N, C, ...) and int64 class indices of shape (N, ...)",
    "binary_cross_entropy": f"{SAME_SHAPE}, and the output lies between 0 and 1",
    "binary_cross_entropy_with_logits": SAME_SHAPE,
    "mse_loss": SAME_SHAPE,
    "l1_loss": SAME_SHAPE,
}
"""By the last part of the name of a function."""


def wants_of(module: nn.Module, args: tuple[Any, ...]) -> str:
    """What a layer wants, as "; its weight of shape (16, 8) wants (..., 8)"; "" where that is not known."""
    x = next((each for each in args if isinstance(each, torch.Tensor)), None)
    if x is None:
        is_missing = bool(args) and all(each is None for each in args)
        return "; it wants a tensor" + (": is a `return` missing in what made it?" if is_missing else "")
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return _of_embedding(module.num_embeddings, x)
    weight = getattr(module, "weight", None)
    wanted = _shape_for(module)
    held = f"its weight of shape {tuple(weight.shape)}" if isinstance(weight, torch.Tensor) else "it"
    kind = "" if x.is_floating_point() or x.is_complex() else ", in floating point: convert it by .float()"
    return f"; {held} wants {wanted}{kind}{_apart(weight, x)}" if wanted else _apart(weight, x)


def _of_embedding(rows: int, indices: torch.Tensor) -> str:
    """What a table of embeddings wants of its indices."""
    if indices.is_floating_point() or indices.is_complex() or indices.dtype is torch.bool:
        return f" of dtype {indices.dtype}; it wants integer indices: convert them by .long()"
    found = f" with indices from {int(indices.min())} to {int(indices.max())}" if indices.numel() else ""
    return f"{found}; it has {rows} rows, for indices from 0 to {rows - 1}"


def _shape_for(module: nn.Module) -> str:
    """The shape of the input that a layer takes; "" where it is not known."""
    if isinstance(module, nn.Linear):
        return f"(..., {module.in_features})"
    if isinstance(module, CONVOLUTIONS):
        return f"(N, {module.in_channels}{', length' if len(module.kernel_size) == 1 else ', ...'})" + _dims(module)
    if isinstance(module, BATCH_NORMS):
        return f"(N, {module.num_features}{'' if isinstance(module, nn.BatchNorm1d) else ', ...'})"
    if isinstance(module, nn.LayerNorm):
        return f"(..., {', '.join(map(str, module.normalized_shape))})"
    if isinstance(module, nn.GroupNorm):
        return f"(N, {module.num_channels}, ...)"
    if isinstance(module, nn.RNNBase):
        order = "batch, length" if module.batch_first else "length, batch"
        return f"({order}, {module.input_size})"
    if isinstance(module, nn.MultiheadAttention):
        order = "batch, length" if module.batch_first else "length, batch"
        return f"({order}, {module.embed_dim})"
    return ""


def _dims(module: Any) -> str:
    """How many dimensions a convolution moves along."""
    return "" if len(module.kernel_size) == 1 else f" with {len(module.kernel_size)} dimensions behind the channels"


def _apart(weight: Any, x: torch.Tensor) -> str:
    """Words on a layer and its input that are on different devices, or of different precisions; "" without."""
    if not isinstance(weight, torch.Tensor):
        return ""
    if weight.device != x.device:
        return f"; the layer is on {weight.device} and its input on {x.device}: move one of them, by .to(device)"
    if weight.dtype != x.dtype and x.is_floating_point():
        return f"; the layer is in {weight.dtype} and its input in {x.dtype}: convert one of them"
    return ""


def wants_of_function(name: str, tensors: list[torch.Tensor]) -> str:
    """What a function of torch wants, and what the targets of a classification hold; "" where that is not known."""
    short = name.rpartition(".")[2]
    wanted = OF_FUNCTIONS.get(short, "")
    if wanted and "class indices" in wanted and len(tensors) > 1:
        return f"{_of_targets(*tensors[:2])}; {wanted}"
    return f"; {wanted}" if wanted else ""


def _of_targets(output: torch.Tensor, target: torch.Tensor) -> str:
    """The figures of a classification: classes of the output, kind and range of the targets."""
    classes = output.shape[1] if output.dim() > 1 else output.shape[0] if output.dim() else 0
    if target.is_floating_point() and target.dim() < output.dim():
        return f": {classes} classes, and targets in floating point of shape {of_tensor(target)}: convert by .long()"
    has_range = target.numel() and not (
        target.is_floating_point() or target.is_complex() or target.is_sparse or target.is_quantized
    )
    found = f", and targets from {int(target.min())} to {int(target.max())}" if has_range else ""
    return f": {classes} classes{found}"
