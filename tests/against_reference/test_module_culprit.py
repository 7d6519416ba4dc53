"""The module that is wrong beside its counterpart, by name; what the notes say of it, and where none can be named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import Report, check_function, check_module

WIDTH = 12


class RMSNormFunction(torch.autograd.Function):
    """x / √(mean(x²) + ε) · w; `mistake` is what is wrong with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mistake: str) -> Tensor:
        inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
        ctx.save_for_backward(x, weight, inverse)
        ctx.mistake = mistake
        y = x.float() * inverse * weight.float()
        return (1.05 * y if mistake == "output" else y).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        normal, g = x.float() * inverse, grad.float() * weight.float()
        dx = inverse * (g - (0 if ctx.mistake == "no mean" else normal * (g * normal).mean(-1, keepdim=True)))
        dw = (grad.float() * normal).flatten(0, -2).sum(0) * (0.95 if ctx.mistake == "weight" else 1)
        if ctx.mistake == "one percent":
            dx = 1.01 * dx
        if ctx.mistake == "nan":
            dx[0, 0, 0] = torch.nan
        return dx.to(x.dtype), dw.to(weight.dtype), None


fused_norm: Callable[..., Tensor] = RMSNormFunction.apply


class RMSNorm(nn.Module):
    """The plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class FusedRMSNorm(RMSNorm):
    """By the Function; with or without a mistake."""

    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.mistake = mistake

    def forward(self, x: Tensor) -> Tensor:
        return fused_norm(x, self.weight, self.mistake)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight


class Block(nn.Module):
    """x + mlp(norm(x))."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH + 3), nn.SiLU(), nn.Linear(WIDTH + 3, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.mlp(self.norm(x))
        return y


class Model(nn.Module):
    """Blocks between an embedding and a head."""

    def __init__(self, norms: list[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, WIDTH)
        self.blocks = nn.Sequential(*map(Block, norms))
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(tokens))).mT  # type: ignore[no-any-return]


def compared(candidate: nn.Module, reference: nn.Module, sequences: int = 5, **options: Any) -> Report:
    tokens = torch.randint(0, 7, (sequences, 6), generator=torch.Generator().manual_seed(0))
    options = {"include": ["embedding*", "*norm*"]} | options
    return check_module(
        candidate.bfloat16(), nn.CrossEntropyLoss(), (tokens[:, :-1], tokens[:, 1:]), reference=reference, **options
    )


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        pytest.param("no mean", ["its gradient of x is off by", "times what rounding explains"], id="input"),
        pytest.param("weight", ["its gradient of weight is off by"], id="weight"),
        pytest.param("output", ["its output is off by", "RMSNormFunction, in its forward at"], id="output"),
        pytest.param("nan", ["its gradient of x holds NaN or infinity"], id="nan"),
    ],
)
def test_the_innermost_module_is_named_that_is_wrong_by_itself(mistake: str, words: list[str]) -> None:
    torch.manual_seed(0)
    report = compared(Model([FusedRMSNorm(), FusedRMSNorm(mistake)]), Model([RMSNorm(), RMSNorm()]))

    assert not report.passed
    assert report.culprit == "blocks.1.norm"
    note = report.notes[0]
    assert note.startswith("the mistake is in blocks.1.norm (FusedRMSNorm): run alone on what it was given, ")
    assert all(each in note for each in ["autograd.Function RMSNormFunction", "test_module_culprit.py:", *words]), note


def test_right_kernels_have_no_culprit() -> None:
    torch.manual_seed(0)
    report = compared(Model([FusedRMSNorm(), FusedRMSNorm()]), Model([RMSNorm(), RMSNorm()]))

    assert report.passed
    assert report.culprit is None


def test_a_forward_that_was_put_in_place_is_found() -> None:
    torch.manual_seed(0)
    candidate = Model([RMSNorm(), RMSNorm()])
    wrong = candidate.blocks[0].norm
    wrong.forward = MethodType(lambda self, x: fused_norm(x, self.weight, "no mean"), wrong)

    assert compared(candidate, Model([RMSNorm(), RMSNorm()])).culprit == "blocks.0.norm"


@pytest.mark.slow
def test_modules_of_the_same_code_are_tried_where_no_patched_one_is_wrong() -> None:
    torch.manual_seed(0)
    candidate = Model([FusedRMSNorm(""), FusedRMSNorm("no mean")])

    assert compared(candidate, Model([RMSNorm(), FusedRMSNorm("")])).culprit == "blocks.1.norm"


class FusedBlock(Block):
    """A mistake between right modules: the residual is counted twice in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = 2 * x - x.detach() + self.mlp(self.norm(x))
        return y


@pytest.mark.slow
def test_a_module_is_named_whose_mistake_is_between_right_ones() -> None:
    torch.manual_seed(0)
    candidate = Model([RMSNorm(), RMSNorm()])
    candidate.blocks[1] = FusedBlock(RMSNorm())
    report = compared(candidate, Model([RMSNorm(), RMSNorm()]))

    assert report.culprit == "blocks.1"
    assert "its code is at" in report.notes[0]


class Doubled(Model):
    """A mistake in the model's own forward."""

    def forward(self, tokens: Tensor) -> Tensor:
        y = super().forward(tokens)
        return 2 * y - y.detach()


@pytest.mark.slow
def test_the_model_itself_is_named_where_all_modules_in_it_are_right() -> None:
    torch.manual_seed(0)
    report = compared(Doubled([RMSNorm()]), Model([RMSNorm()]))

    assert report.culprit == ""
    assert report.notes[0].startswith("the mistake is in the model itself (Doubled), and each of the ")


class Sum(nn.Module):
    """Another interface than the reference's module of that name has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor, y: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        total = x + y
        return total, factor * rms_norm(total, self.weight)


class Plain(nn.Module):
    """norm(x + x²) · 2."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = RMSNorm()

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.norm(x + x.square())


class Fused(Plain):
    """The same with a norm that adds, and a wrong factor."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, x.square())[1] * 2 - 0.1 * x.detach()


def test_no_culprit_is_named_where_modules_cannot_be_compared() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 4, 5, WIDTH)
    report = check_module(Fused(), nn.MSELoss(), (x.requires_grad_(), y), reference=Plain())

    assert not report.passed
    assert report.culprit is None
    assert "no culprit can be named: norm (Sum) raises" in report.notes[0]


@pytest.mark.slow
def test_of_several_wrong_modules_the_others_are_named_too() -> None:
    torch.manual_seed(0)
    report = compared(Model([FusedRMSNorm("no mean"), FusedRMSNorm("no mean")]), Model([RMSNorm(), RMSNorm()]))

    assert {report.culprit, report.notes[1].rpartition(" ")[2]} == {"blocks.0.norm", "blocks.1.norm"}
    assert report.notes[1].startswith("wrong as well when run alone: blocks.")


class OfBfloat16(FusedRMSNorm):
    """Takes bfloat16 only, as kernels do."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype is torch.bfloat16
        return super().forward(x)


def test_a_module_is_named_that_runs_under_the_callers_autocast_only() -> None:
    torch.manual_seed(0)
    candidate = nn.Sequential(nn.Linear(WIDTH, WIDTH), OfBfloat16("no mean"))
    x, y = torch.randn(2, 4, 5, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        report = check_module(
            candidate, nn.MSELoss(), (x, y), reference=nn.Sequential(nn.Linear(WIDTH, WIDTH), RMSNorm())
        )

    assert report.culprit == "1"


def test_a_module_without_others_is_the_culprit_itself() -> None:
    x, y = torch.randn(2, 4, 5, WIDTH).bfloat16()
    report = check_module(
        FusedRMSNorm("no mean").bfloat16(), nn.MSELoss(), (x.requires_grad_(), y), reference=RMSNorm()
    )

    assert report.culprit == ""
    assert "the mistake is in the model itself (FusedRMSNorm): its gradient of batch[0] is off" in report.notes[0]
    assert "autograd.Function RMSNormFunction, in its backward at" in report.notes[0]


def wrong_norm(x: Tensor, weight: Tensor) -> Tensor:
    return fused_norm(x, weight, "no mean")


@pytest.mark.parametrize(
    ("function", "way", "code"),
    [
        pytest.param(wrong_norm, "backward", "autograd.Function RMSNormFunction, in its backward at", id="Function"),
        pytest.param(lambda x, w: 1.05 * rms_norm(x, w), "forward", "its code is at", id="plain"),
    ],
)
def test_a_wrong_function_is_the_culprit(function: Callable[..., Tensor], way: str, code: str) -> None:
    x, w = torch.randn(4, 5, WIDTH).bfloat16(), torch.linspace(0.5, 1.5, WIDTH).bfloat16()
    report = check_function(function, (x, w), reference=rms_norm)

    assert report.culprit == function.__name__
    assert report.notes[0].startswith(f"the mistake is in the {way} of the function: its ")
    assert code in report.notes[0]


def test_applied_functions_are_named_by_their_class() -> None:
    x, w = torch.randn(4, 5, WIDTH).bfloat16(), torch.linspace(0.5, 1.5, WIDTH).bfloat16()
    report = check_function(
        RMSNormFunction.apply, (x, w, "no mean"), reference=lambda x, weight, mistake: rms_norm(x, weight)
    )

    assert report.culprit == "RMSNormFunction"


@pytest.mark.slow
def test_drawn_numbers_are_the_same_in_a_module_alone() -> None:
    torch.manual_seed(0)
    candidate = Model([nn.Sequential(nn.Dropout(0.5), FusedRMSNorm("no mean"))])
    reference = Model([nn.Sequential(nn.Dropout(0.5), RMSNorm())])

    assert compared(candidate, reference, mode="train").culprit == "blocks.0.norm.1"


@pytest.mark.slow
def test_the_search_takes_a_fixed_number_of_calls_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    calls = {"right": 0, "wrong": 0}

    def counting(self: Any, x: Tensor, mistake: str, name: str) -> Tensor:
        calls[name] += 1
        return fused_norm(x, self.weight, mistake)

    for mistake, name in (("", "right"), ("no mean", "wrong")):
        candidate = Model([RMSNorm(), RMSNorm()])
        norm = candidate.blocks[1].norm
        norm.forward = MethodType(partial(counting, mistake=mistake, name=name), norm)
        compared(candidate, Model([RMSNorm(), RMSNorm()]))

    assert calls["wrong"] <= 3 * calls["right"]


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["one percent", ""], ids=["wrong", "right"])
def test_one_percent_in_a_module_is_found_though_the_rounding_of_the_model_hides_it(mistake: str) -> None:
    torch.manual_seed(0)
    candidate = Model([FusedRMSNorm(), FusedRMSNorm(mistake)])
    report = compared(candidate, Model([RMSNorm(), RMSNorm()]), sequences=33)

    spoiled = {"embedding.weight", "blocks.0.norm.weight"}
    assert {row.name for row in report.mismatches} == (spoiled if mistake else set())
    assert report.culprit == ("blocks.1.norm" if mistake else None)
    assert all("by the errors of blocks.1.norm alone" in row.reason for row in report.mismatches)


class Scaled(nn.Module):
    """A linear layer whose input, weight and output are multiplied by factors."""

    def __init__(self, *, before: float = 1.0, after: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.before * x) * self.after
        return y


class Twice(Scaled):
    """Code of its own, so that it is tried."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.slow
def test_a_factor_that_moves_from_one_module_to_another_is_no_mistake() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 9, WIDTH).bfloat16()
    candidate = nn.Sequential(Twice(after=2.0), Twice(before=0.5), nn.Tanh())
    report = check_module(
        candidate.bfloat16(), nn.MSELoss(), (x, y), reference=nn.Sequential(Scaled(), Scaled(), nn.Tanh())
    )

    assert report.proven
    assert report.culprit is None
    assert (
        "0 (Twice) is not the reference's: run alone on what it was given, its output is off by 100 %"
        in report.notes[0]
    )


class Table(nn.Module):
    """Factors by position, which need no gradient."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.arange(x.shape[-2])[:, None] * torch.linspace(0.1, 1, x.shape[-1])
        return angles.cos().to(x.dtype), (self.sign * angles.sin()).to(x.dtype)


class Rotated(nn.Module):
    """A linear layer whose output a table rotates; another table is called for nothing."""

    def __init__(self, sign: float = 1.0, unused: float = 1.0, factor: float = 1.0) -> None:
        super().__init__()
        self.linear, self.table, self.unused = nn.Linear(WIDTH, WIDTH), Table(sign), Table(unused)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.table(x)
        self.unused(x)
        y = self.linear(x)
        return y * cos + self.factor * y.roll(1, -1) * sin  # type: ignore[no-any-return]


@pytest.mark.parametrize("inside", [False, True], ids=["of the model", "of a wrong module"])
@pytest.mark.parametrize(
    ("wrong", "culprit"),
    [
        pytest.param({"sign": -1.0}, "table", id="table"),
        pytest.param({"factor": -1.0, "unused": -1.0}, "", id="one that is not used"),
    ],
)
def test_a_module_is_named_whose_outputs_need_no_gradient(wrong: dict[str, Any], culprit: str, *, inside: bool) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 7, WIDTH).bfloat16()
    candidate, reference = [nn.Sequential(each) if inside else each for each in (Rotated(**wrong), Rotated())]
    report = check_module(candidate.bfloat16(), nn.MSELoss(), (x, y), reference=reference)

    assert report.culprit == ".".join(filter(None, ["0" if inside else "", culprit]))


class Mask(nn.Module):
    """0 or `far` behind the diagonal; or whether an entry is there."""

    def __init__(self, far: float = -torch.inf, *, boolean: bool = False, diagonal: int = 1) -> None:
        super().__init__()
        self.far, self.boolean, self.diagonal = far, boolean, diagonal

    def forward(self, x: Tensor) -> Tensor:
        behind = torch.ones(x.shape[-2], x.shape[-2]).triu(self.diagonal).bool()
        return behind if self.boolean else torch.zeros_like(behind, dtype=x.dtype).masked_fill(behind, self.far)


class Masked(nn.Module):
    """Attention under a mask."""

    def __init__(self, mask: Mask, factor: float = 1.0) -> None:
        super().__init__()
        self.mask, self.linear, self.factor = mask, nn.Linear(WIDTH, WIDTH), factor

    def forward(self, x: Tensor) -> Tensor:
        mask, scores = self.mask(x), x @ self.linear(x).mT
        scores = scores.masked_fill(mask, -torch.inf) if self.mask.boolean else scores + mask
        return self.factor * scores.softmax(-1) @ x  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("wrong", "right", "culprit", "words"),
    [
        pytest.param(Masked(Mask(0.0)), Mask(), "mask", "its output is 0 where -inf is right", id="not masked"),
        pytest.param(Masked(Mask(-1e4), 1.1), Mask(), "", "the model itself", id="another number that masks"),
        pytest.param(
            Masked(Mask(boolean=True, diagonal=2)),
            Mask(boolean=True),
            "",
            "run alone, or in mask, which cannot be judged alone",
            id="true and false",
        ),
    ],
)
def test_a_mask_is_named_where_it_spoils_something(wrong: Masked, right: Mask, culprit: str, words: str) -> None:
    x, y = torch.randn((2, 5, 7, WIDTH), generator=torch.Generator().manual_seed(0)).bfloat16()
    report = check_module(wrong.bfloat16(), nn.MSELoss(), (x, y), reference=Masked(right))

    assert report.culprit == culprit
    assert words in report.notes[0]
