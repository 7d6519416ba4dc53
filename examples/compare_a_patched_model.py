"""A Llama whose norms, MLPs and loss are replaced by fused kernels: is it still the same model, in bfloat16?

Run it: `python examples/compare_a_patched_model.py` (it needs transformers). The patched model is compared with the one
that it was made of, on a real batch. One kernel has a mistake: the report names the first module that uses it, alone.
Then comes one line on the patched model with the mistake mended.

Kernels for a GPU are written in Triton or CUDA; these stand for them, written in torch: they compute in float32, round
once, and have backwards of their own. The fused loss never holds the logits of more than a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from torch_gradcheck import Report, check_module

TOKENS_AT_ONCE = 16
"""How many tokens have logits at the same time."""


class FusedRMSNorm(torch.autograd.Function):
    """y = x / r · w with r = √(mean(x²) + ε), computed in float32 over the last axis."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, mended: bool) -> Tensor:
        """Saves 1 / r, one number a row, beside the inputs."""
        inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, inverse)
        ctx.mended = mended
        return (x.float() * inverse * weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """dx = (ĝ − n · mean(ĝ · n)) / r, where ĝ = g · w and n = x / r."""
        x, weight, inverse = ctx.saved_tensors
        normal, g = x.float() * inverse, grad.float() * weight.float()
        # The mistake: g in place of ĝ in the last term, as if it were multiplied by the weight already. At weights of
        # exactly 1, as they are when training starts, the two are the same.
        projection = (g if ctx.mended else grad.float()) * normal
        dx = (g - normal * projection.mean(-1, keepdim=True)) * inverse
        dw = (grad.float() * normal).flatten(0, -2).sum(0)
        return dx.to(x.dtype), dw.to(weight.dtype), None, None


class FusedSwiGLU(torch.autograd.Function):
    """silu(a) · b in float32; the backward computes the sigmoid again."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        """Saves the inputs alone."""
        ctx.save_for_backward(a, b)
        return (nn.functional.silu(a.float()) * b.float()).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """da = g · b · s · (1 + a · (1 − s)) and db = g · a · s, where s = sigmoid(a)."""
        a, b = (each.float() for each in ctx.saved_tensors)
        g, s = grad.float(), torch.sigmoid(a)
        return (g * b * s * (1 + a * (1 - s))).to(grad.dtype), (g * a * s).to(grad.dtype)


class FusedLinearCrossEntropy(torch.autograd.Function):
    """The mean cross entropy of x Wᵀ, a few rows at a time: the forward computes the gradients as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """x of shape (tokens, width), W (vocabulary, width), labels (tokens,)."""
        loss = torch.zeros((), device=x.device)
        dx, dw = torch.empty_like(x), torch.zeros(weight.shape, device=x.device)
        for rows in torch.arange(len(x), device=x.device).split(TOKENS_AT_ONCE):
            logits = (x[rows] @ weight.T).float()
            wanted = nn.functional.one_hot(labels[rows], len(weight))
            loss += nn.functional.cross_entropy(logits, labels[rows], reduction="sum") / len(x)
            dlogits = (logits.softmax(-1) - wanted) / len(x)
            dx[rows] = (dlogits @ weight.float()).to(x.dtype)
            dw += dlogits.T @ x[rows].float()
        ctx.save_for_backward(dx, dw.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scales what the forward has computed."""
        dx, dw = ctx.saved_tensors
        return dx * grad.to(dx.dtype), dw * grad.to(dw.dtype), None


rms_norm: Callable[..., Tensor] = FusedRMSNorm.apply
swiglu: Callable[..., Tensor] = FusedSwiGLU.apply
linear_cross_entropy: Callable[..., Tensor] = FusedLinearCrossEntropy.apply


def patched(model: LlamaForCausalLM, *, mended: bool) -> LlamaForCausalLM:
    """A copy of the model in bfloat16 with the kernels in place of the forwards, as libraries of kernels patch it."""
    fused = deepcopy(model).bfloat16()

    def norm(self: Any, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.variance_epsilon, mended)

    def mlp(self: Any, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
        return down

    def model_with_loss(self: Any, input_ids: Tensor, labels: Tensor) -> CausalLMOutputWithPast:
        hidden = self.model(input_ids).last_hidden_state[:, :-1]
        return CausalLMOutputWithPast(
            loss=linear_cross_entropy(hidden.flatten(0, 1), self.lm_head.weight, labels[:, 1:].flatten())
        )

    for module in fused.modules():
        forward = {"LlamaRMSNorm": norm, "LlamaMLP": mlp}.get(type(module).__name__)
        if forward is not None:
            module.forward = MethodType(forward, module)
    fused.forward = MethodType(model_with_loss, fused)
    return fused


def trained(seed: int = 0) -> LlamaForCausalLM:
    """A small Llama of random weights whose norms are no longer exactly 1, as after some training."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=6,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def real_batch(seed: int = 0) -> dict[str, Tensor]:
    """Three sequences of 19 tokens, no size a power of two: in training, a batch of the loader."""
    tokens = torch.randint(0, 23, (3, 19), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens, "labels": tokens}


def report_on_patched(*, mended: bool, seed: int = 0) -> Report:
    """The patched model beside the one that it was made of, which is given the weights in bfloat16."""
    model = trained(seed)
    return check_module(patched(model, mended=mended), lambda output: output.loss, real_batch(seed), reference=model)


def main() -> None:
    """Compares the model with the mistake, and the one without."""
    print(report_on_patched(mended=False))
    print(f"\nmended: {report_on_patched(mended=True)!r}")


if __name__ == "__main__":
    main()
