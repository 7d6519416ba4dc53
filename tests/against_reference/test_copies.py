"""What a candidate is given: its arguments as they are, in the caller's memory layout, anew for every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from tests.zoo.snapshot import Snapshot
from torch_gradcheck import check_function, check_module

BFLOAT16 = torch.bfloat16


def normal(*shape: int, dtype: torch.dtype = BFLOAT16, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def product(x: Tensor, w: Tensor, *_: Any) -> Tensor:
    return x * w


# Memory layouts ---------------------------------------------------------------------------------------------------

PACKED = normal(6, 14)

LAYOUTS: dict[str, tuple[Tensor, Tensor]] = {
    "contiguous": (normal(6, 7), normal(6, 7, seed=1)),
    "transposed": (normal(7, 6).t(), normal(6, 7, seed=1)),
    "sliced": (normal(6, 14)[:, ::2], normal(6, 7, seed=1)),
    "expanded": (normal(6, 7), normal(1, 7, seed=1).expand(6, 7)),
    "with an offset": (normal(43)[1:].view(6, 7), normal(6, 7, seed=1)),
    "of one storage": (PACKED[:, :7], PACKED[:, 7:]),
    "overlapping": (normal(12).as_strided((6, 7), (1, 1)), normal(6, 7, seed=1)),
    "channels last": (
        normal(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        normal(2, 3, 4, 5, seed=1).contiguous(memory_format=torch.channels_last),
    ),
}


class Seen:
    """A candidate that takes down how its arguments lie in memory."""

    def __init__(self) -> None:
        self.layouts: list[Any] = []

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        self.layouts.append(layout(x, w))
        return x * w


def layout(x: Tensor, w: Tensor) -> Any:
    apart = w.data_ptr() - x.data_ptr() if x.untyped_storage().data_ptr() == w.untyped_storage().data_ptr() else None
    return [(t.dtype, t.device, t.stride(), t.data_ptr() % 16, t.requires_grad) for t in (x, w)], apart


@pytest.mark.slow_but_for(3)
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_candidate_finds_its_arguments_as_they_lie_in_memory(name: str) -> None:
    arguments = tuple(tensor.requires_grad_() for tensor in map(Tensor.detach, LAYOUTS[name]))
    seen = Seen()
    assert check_function(seen, arguments, reference=product).passed
    assert seen.layouts[:5] == [layout(*arguments)] * 5


def test_lazily_conjugated_numbers_stay_so() -> None:
    x, seen = normal(3, 4, dtype=torch.complex64).conj(), []

    def candidate(x: Tensor) -> Tensor:
        seen.append(x.is_conj())
        return x * x

    assert check_function(candidate, (x,), reference=lambda x: x * x).passed
    assert seen[:5] == [True] * 5


def test_arguments_that_are_not_on_trial_keep_their_layout_too() -> None:
    index, seen = torch.arange(12).view(2, 6).t()[:, :1], []

    def candidate(x: Tensor, index: Tensor) -> Tensor:
        seen.append(index.stride())
        return x.gather(1, index)

    report = check_function(candidate, (normal(6, 12), index), reference=lambda x, index: x.gather(1, index))
    assert report.passed
    assert seen[:5] == [(1, 6)] * 5


def test_a_batch_keeps_its_layouts() -> None:
    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.stride())
            return super().forward(x)

    seen: list[Any] = []
    torch.manual_seed(0)
    model, plain = Spy(5, 3).to(BFLOAT16), nn.Linear(5, 3).to(BFLOAT16)
    batch = (normal(5, 7).t(), normal(7, 3, seed=1))
    assert check_module(model, lambda y, target: (y - target).square().mean(), batch, reference=plain).passed
    assert seen[:5] == [(1, 7)] * 5


# Writes -----------------------------------------------------------------------------------------------------------


class GradientInPlace(Function):
    """Σ log Σ exp of rows; the forward writes the gradient over its input, as fused cross entropies do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.float().logsumexp(-1)
        x.data.copy_(x.float().softmax(-1))
        ctx.save_for_backward(x)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (softmax,) = ctx.saved_tensors
        return gradient.unsqueeze(-1) * softmax


class Dirty(Function):
    """2x, written over x, and marked so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class SavedInBackward(Function):
    """x²; the backward writes its result over what was saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x.data.mul_(2 * gradient)


def by_numpy(x: Tensor) -> Tensor:
    result = x * 3
    x.detach().view(torch.int16).numpy()[...] = 0  # after it was read
    return result


WRITES: dict[str, tuple[Callable[..., Any], Callable[..., Any], bool]] = {
    "the gradient over the input": (GradientInPlace.apply, lambda x: x.logsumexp(-1), False),
    "marked dirty": (Dirty.apply, lambda x: 2 * x, True),
    "in place": (lambda x: x.mul_(2).sigmoid_(), lambda x: (2 * x).sigmoid(), True),
    "over what was saved": (SavedInBackward.apply, lambda x: x * x, False),
    "by numpy": (by_numpy, lambda x: 3 * x, False),
    "by the reference": (lambda x: (2 * x).sigmoid(), lambda x: x.mul_(2).sigmoid_(), True),
}
"""What is written → candidate, reference, and whether the contract of the candidate allows it."""


@pytest.mark.slow_but_for(3)
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("name", WRITES)
def test_what_a_run_writes_to_its_arguments_is_not_there_in_the_next(name: str, strided: bool) -> None:
    candidate, reference, is_allowed = WRITES[name]
    x = normal(5, 7).t() if strided else normal(5, 7)
    before = Snapshot(x=x)
    report = check_function(candidate, (x,), reference=reference)
    assert before.changes() == []
    assert not report.mismatches
    assert [row.status for row in report] == ["match", "match"]
    assert [each.name for each in report.contract if each.status == "failed"] == [] if is_allowed else ["inputs_kept"]


def test_writes_to_indices_and_to_arguments_on_one_storage() -> None:
    """A kernel that leaves its workspace in an argument: q, k and v of one packed tensor, and counters."""

    def candidate(q: Tensor, k: Tensor, counts: Tensor) -> Tensor:
        counts.add_(1)
        result = q.clone() * k.clone() * counts.clone()
        q.untyped_storage().fill_(0)
        return result

    packed, counts = normal(6, 14), torch.zeros(7, dtype=torch.int32)
    before = Snapshot(packed=packed, counts=counts)
    report = check_function(
        candidate, (packed[:, :7], packed[:, 7:], counts), reference=lambda q, k, counts: q * k * (counts + 1)
    )
    assert before.changes() == []
    assert [row.status for row in report] == ["match"] * 3


class Overwrites(nn.Module):
    """w · x + b; writes over its parameters, its buffer and its input past autograd, after they were read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(7))
        self.register_buffer("offset", normal(7, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        result = Scaled.apply(x, self.weight) + self.offset
        for tensor in (self.weight, self.offset, x):
            tensor.data.view(torch.int16).numpy()[...] = 1
        return result


class Scaled(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x.clone(), weight.clone())
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return gradient * weight, (gradient * x).sum(0)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(7))
        self.register_buffer("offset", torch.zeros(7))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.offset


@pytest.mark.parametrize("on_trial", [False, True], ids=["input", "input on trial"])
def test_what_a_module_writes_past_autograd_is_not_there_in_the_next_run(on_trial: bool) -> None:
    model, reference, x = Overwrites(), Plain(), normal(5, 7, seed=2).requires_grad_(on_trial)
    before = Snapshot(model=model, reference=reference, x=x)
    report = check_module(model, lambda y: y.float().square().sum(), x, reference=reference)
    assert before.changes() == []
    assert report.passed, report


# What else arguments are ------------------------------------------------------------------------------------------


def test_lists_mappings_keywords_and_none() -> None:
    def plain(xs: list[Tensor], *, scale: dict[str, Tensor], mask: Tensor | None = None, power: int = 1) -> Tensor:
        return torch.stack(xs).pow(power).sum(0) * scale["by"]

    def candidate(xs: list[Tensor], **kwargs: Any) -> Tensor:
        xs.append(xs.pop())  # its own list
        return plain(xs, **kwargs)

    inputs = {"xs": [normal(4), normal(4, seed=1)], "scale": {"by": normal(4, seed=2)}, "mask": None, "power": 2}
    report = check_function(candidate, inputs, reference=plain)
    assert [row.name for row in report] == ["xs[0]", "xs[1]", "scale['by']", "output"]
    assert report.passed, report


def test_an_argument_without_gradient_is_none_of_the_rows() -> None:
    x, w = normal(5, 7).requires_grad_(), normal(5, 7, seed=1)
    report = check_function(product, (x, w), reference=product)
    assert [row.name for row in report] == ["x", "output"]
    assert report.passed
