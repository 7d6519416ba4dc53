"""hold_detached: what leaves the graph is held at its value at θ, whichever way it leaves, and nothing else is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.sweeps import in_turn
from torch_gradcheck import GradientMonitor, InvalidRequestError, Report, check_closure, check_module
from torch_gradcheck.reporting.facts import Status
from torch_gradcheck.torch_internals.dispatch import function_modes_in_force

Closure = Callable[[], Tensor]

Case = Callable[[], tuple[nn.Module, Closure]]


def _data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _two(width: int = 3) -> nn.ModuleDict:
    return nn.ModuleDict({"a": nn.Linear(4, width), "b": nn.Linear(width, 2)})


class Half(torch.autograd.Function):
    """tanh with a backward that is half of the right one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return 0.5 * grads[0] * (1 - y * y)


class Right(torch.autograd.Function):
    """x · sigmoid(x), whose forward computes without a graph, and saves what it computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = torch.sigmoid(x.detach().data)
        with torch.no_grad():
            ctx.slope = s * (1 + x * (1 - s))
        with torch.enable_grad():
            s = s.clone()
        return x * s

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.slope


def half(x: Tensor) -> Tensor:
    y: Tensor = Half.apply(x)
    return y


right: Callable[[Tensor], Tensor] = Right.apply
"""An alias made before any check."""


class Product(torch.autograd.Function):
    """x · y · z, where autograd is told of y, and z is in a list, whose tensors it does not follow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, zs: list[Tensor]) -> Tensor:
        ctx.save_for_backward(x, y, *zs)
        return x * y * zs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, y, z = ctx.saved_tensors
        return grads[0] * y * z, grads[0] * x * z, None


product: Callable[[Tensor, Tensor, list[Tensor]], Tensor] = Product.apply


def straight_through() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        return model["b"](h + (torch.round(2 * h) / 2 - h).detach()).square().mean()

    return model, closure


def vq_vae() -> tuple[nn.Module, Closure]:
    model, x = (
        nn.ModuleDict({"encoder": nn.Linear(4, 2), "codes": nn.Embedding(5, 2), "decoder": nn.Linear(2, 4)}),
        _data(6, 4),
    )

    def closure() -> Tensor:
        z = model["encoder"](x)
        q = model["codes"](torch.cdist(z, model["codes"].weight).argmin(dim=1))
        decoded = model["decoder"](z + (q - z).detach())
        return F.mse_loss(decoded, x) + F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())

    return model, closure


def gumbel() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)
    return model, lambda: model["b"](F.gumbel_softmax(model["a"](x), hard=True)).square().mean()


def simsiam() -> tuple[nn.Module, Closure]:
    model, x, y = nn.ModuleDict({"f": nn.Linear(4, 3), "p": nn.Linear(3, 3)}), _data(5, 4), _data(10, 4)[5:]

    def closure() -> Tensor:
        z, w = model["f"](x), model["f"](y)
        p, q = model["p"](z), model["p"](w)
        return -F.cosine_similarity(p, w.detach()).mean() - F.cosine_similarity(q, z.detach()).mean()

    return model, closure


def grpo() -> tuple[nn.Module, Closure]:
    model, x, advantages = nn.Linear(4, 3), _data(5, 4), _data(5)

    def closure() -> Tensor:
        log_p = F.log_softmax(model(x), dim=1)[:, 1]
        return -(torch.exp(log_p - log_p.detach()) * advantages).mean()

    return model, closure


def td_targets() -> tuple[nn.Module, Closure]:
    model, x, y = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), _data(5, 4), _data(10, 4)[5:]

    def closure() -> Tensor:
        with torch.no_grad():
            target = 1.0 + 0.9 * model(y).amax(dim=1)
        return F.smooth_l1_loss(model(x)[:, 0], target)

    return model, closure


def argument_of_a_function() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        return model["b"](product(h, h.detach(), [h.data])).square().mean()

    return model, closure


def function_without_grad() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        with torch.no_grad():
            target = product(h, h, [h])
        return model["b"](h * target).square().mean()

    return model, closure


def by_data() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        return (model["b"](h) * h.data.norm()).square().mean() + (model["b"].weight.data * model["b"].weight).sum()

    return model, closure


def by_item() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        return (model["b"](h / h.norm().item())).square().mean()

    return model, closure


def by_list_and_array() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        sizes = torch.tensor([sum(map(abs, row)) for row in h.tolist()], dtype=h.dtype)
        means = torch.from_numpy(np.abs(h.detach().numpy()).mean(axis=0))
        return (model["b"](h * means).square().mean(dim=1) / sizes).sum()

    return model, closure


def of_numbers_in_a_list(make: Callable[[list[Tensor], Tensor], Tensor]) -> Case:
    """Weights of the columns, of a list of detached numbers that torch makes a tensor of."""

    def case() -> tuple[nn.Module, Closure]:
        model, x = _two(), _data(5, 4)

        def closure() -> Tensor:
            h = model["a"](x)
            return model["b"](h * make([each.detach() for each in h.norm(dim=0)], h)).square().mean()

        return model, closure

    return case


def deep_copy() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        return model["b"](h * copy.deepcopy({"kept": h.detach()})["kept"]).square().mean()

    return model, closure


def view_of_what_is_written_later() -> tuple[nn.Module, Closure]:
    """A row that is read through a view made before, each time after somebody has added to it."""
    model, x = _two(), _data(2, 4)

    def closure() -> Tensor:
        total, loss = torch.zeros(2, 3), torch.zeros(())
        row = total[0]
        for each in x:
            h = model["a"](each)
            with torch.no_grad():
                total[0].add_(h)
            loss = loss + (h + row).square().sum()
        return loss + model["b"](h).square().mean()

    return model, closure


def forward_called_plainly() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        with torch.no_grad():
            target = Half.forward(SimpleNamespace(save_for_backward=lambda y: None), h)
        return model["b"](h * target).square().mean()

    return model, closure


def inner_steps(step: Callable[[Tensor, Tensor], object]) -> Case:
    """First-order MAML with a head that the inner steps write to."""

    def case() -> tuple[nn.Module, Closure]:
        model, x, start = _two(), _data(5, 4), _data(2, 3)

        def closure() -> Tensor:
            head = start.clone().requires_grad_()
            for _ in range(2):
                (gradient,) = torch.autograd.grad((model["a"](x) @ head.T).square().mean(), head)
                step(head, gradient)
            return (model["a"](x) @ head.T).square().mean() + model["b"](model["a"](x)).square().mean()

        return model, closure

    return case


def _written_to(head: Tensor, gradient: Tensor) -> None:
    with torch.no_grad():
        head -= 0.1 * gradient


def _stepped(head: Tensor, gradient: Tensor) -> None:
    head.grad = gradient
    torch.optim.SGD([head], lr=0.1).step()


def target_network(is_new: bool) -> Case:
    """A target that is given the weights in every call, and whose parameters require gradients as its own do."""

    def case() -> tuple[nn.Module, Closure]:
        model, x = _two(), _data(5, 4)
        kept = nn.Linear(4, 3)

        def closure() -> Tensor:
            target = nn.Linear(4, 3) if is_new else kept
            target.load_state_dict(model["a"].state_dict())
            return model["b"](model["a"](x) * target(0.5 * x)).square().mean()

        return model, closure

    return case


def views_without_grad() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        with torch.no_grad():
            first = h[:1].view(-1)
        return model["b"](h * first).square().mean()

    return model, closure


def new_leaf() -> tuple[nn.Module, Closure]:
    """A gradient penalty at a detached point, whose formula reads the point again."""
    model = nn.ModuleDict({"g": nn.Linear(4, 3), "d": nn.Linear(3, 1)})
    x = _data(5, 4)

    def closure() -> Tensor:
        fake = model["g"](x).detach().requires_grad_()
        (slope,) = torch.autograd.grad(model["d"](fake**3).sum(), fake, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean() + model["d"](model["g"](x)).tanh().mean()

    return model, closure


def gradient_without_graph() -> tuple[nn.Module, Closure]:
    """First-order MAML: the inner gradient is a constant."""
    model, x = nn.Linear(4, 2), _data(5, 4)

    def closure() -> Tensor:
        grads = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
        weight, bias = (p - 0.5 * g for p, g in zip(model.parameters(), grads, strict=True))
        return F.linear(x, weight, bias).tanh().square().mean()

    return model, closure


def inference_mode() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        with torch.inference_mode():
            target = model["a"](x)
        return (model["a"](x).tanh() - target.clone()).square().mean() + model["b"].weight.sum()

    return model, closure


def running_statistic() -> tuple[nn.Module, Closure]:
    """A buffer that the forward moves, and reads, under no_grad."""
    model, x = _two(), _data(5, 4)
    model.register_buffer("mean", torch.zeros(3))

    def closure() -> Tensor:
        h = model["a"](x)
        with torch.no_grad():
            model.get_buffer("mean").mul_(0.9).add_(0.1 * h.mean(dim=0))
        return model["b"](h - model.get_buffer("mean")).square().mean()

    return model, closure


def in_a_checkpoint(use_reentrant: bool) -> Case:
    def case() -> tuple[nn.Module, Closure]:
        model, x = _two(), _data(5, 4)

        def block(x: Tensor) -> Tensor:
            h = model["a"](x)
            return h + (h.sign() - h).detach()

        def closure() -> Tensor:
            h = checkpoint(block, x.clone().requires_grad_(), use_reentrant=use_reentrant)
            return model["b"](h).square().mean()

        return model, closure

    return case


CASES: dict[str, Case] = {
    "straight-through": straight_through,
    "VQ-VAE": vq_vae,
    "Gumbel": gumbel,
    "SimSiam": simsiam,
    "GRPO": grpo,
    "TD targets": td_targets,
    "argument of a Function": argument_of_a_function,
    "Function under no_grad": function_without_grad,
    ".data": by_data,
    ".item()": by_item,
    ".tolist() and .numpy()": by_list_and_array,
    "torch.as_tensor of a list": of_numbers_in_a_list(lambda numbers, _: torch.as_tensor(numbers)),
    "torch.asarray of lists": of_numbers_in_a_list(lambda numbers, _: torch.asarray([numbers, numbers])[0]),
    "torch.Tensor of a list": of_numbers_in_a_list(lambda numbers, h: torch.Tensor(numbers).to(h)),
    "new_tensor of a list": of_numbers_in_a_list(lambda numbers, h: h.new_tensor(numbers)),
    "deep copy": deep_copy,
    "views under no_grad": views_without_grad,
    "view of what is written later": view_of_what_is_written_later,
    "forward of a Function as a function": forward_called_plainly,
    "inner steps under no_grad": inner_steps(_written_to),
    "inner steps of an optimizer": inner_steps(_stepped),
    "target network": target_network(is_new=False),
    "new target network": target_network(is_new=True),
    "new leaf": new_leaf,
    "first-order MAML": gradient_without_graph,
    "inference mode": inference_mode,
    "running statistic": running_statistic,
    "checkpoint": in_a_checkpoint(False),
    "reentrant checkpoint": in_a_checkpoint(True),
}


def _checked(case: Case, wrap: Callable[[Closure], Closure] = lambda closure: closure, **options: Any) -> Report:
    torch.manual_seed(0)
    model, closure = case()
    return check_closure(model, wrap(closure), **options)


@pytest.mark.parametrize("name", CASES)
def test_a_declared_stop_gradient_is_right(name: str) -> None:
    report = _checked(CASES[name], hold_detached=True)
    assert report.passed, report
    assert {row.status for row in report} <= {Status.MATCH, Status.FLAT, Status.UNUSED}
    assert any("held at its value at θ" in note and "test_held_values.py:" in note for note in report.notes)


@pytest.mark.parametrize("name", CASES)
def test_the_same_is_a_mismatch_that_says_how_to_declare_it(name: str) -> None:
    report = _checked(CASES[name])
    assert not report.passed
    assert "declare it with hold_detached=True" in report.notes[0]
    assert "test_held_values.py:" in report.notes[0]


MISTAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda g: 1.01 * g,
    "sign flipped": lambda g: -g,
    "missing": lambda g: 0 * g,
}


@pytest.mark.parametrize(
    ("name", "mistake"),
    in_turn(
        [(name,) for name in ("straight-through", "VQ-VAE", "GRPO", "argument of a Function", "TD targets", "new leaf")]
        + [("reentrant checkpoint",)],
        [(mistake,) for mistake in MISTAKES],
    ),
)
def test_a_mistake_beside_it_is_found(name: str, mistake: str) -> None:
    torch.manual_seed(0)
    model, closure = CASES[name]()
    parameter = next(iter(model.parameters()))
    parameter.register_hook(MISTAKES[mistake])
    report = check_closure(model, closure, hold_detached=True)
    first, *others = report
    assert first.status is Status.MISMATCH
    assert first.diagnosis is not None
    assert first.diagnosis.kind.value == mistake.replace(" ", "_")
    assert all(row.status is not Status.MISMATCH for row in others), report
    assert report.culprit == first.name


class Net(nn.Module):
    """A straight-through estimator before an activation.

    Args:
        activation: right or wrong.
        width: of the hidden layers.
    """

    def __init__(self, activation: Callable[[Tensor], Tensor], width: int = 3) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 2)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = self.b(h + (torch.round(2 * h) / 2 - h).detach())
        y: Tensor = self.c(self.activation(h))
        return y


def _check(activation: Callable[[Tensor], Tensor], width: int = 3, **options: Any) -> Report:
    torch.manual_seed(0)
    return check_module(Net(activation, width), nn.MSELoss(), (_data(5, 4), _data(5, 2)), **options)


@pytest.mark.parametrize("width", [3, 40], ids=["few entries", "recorded"])
@pytest.mark.parametrize("method", ["exact", "projected"])
def test_a_wrong_function_beside_it_is_found_and_named(method: str, width: int) -> None:
    wrong = _check(half, width, method=method, hold_detached=True)
    assert wrong.culprit == ""
    assert {row.name for row in wrong.mismatches} == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert "Function Half gives a wrong gradient for x" in wrong.notes[0]
    factors = [row.diagnosis.factor for row in wrong.mismatches if row.diagnosis]
    assert factors == pytest.approx([0.5] * 4)
    assert _check(torch.tanh, width, method=method, hold_detached=True).passed


def test_a_plain_check_does_not_offer_to_declare_what_is_wrong_either_way() -> None:
    report = _check(half)
    assert not any("hold_detached" in note for note in report.notes)
    assert "test_held_values.py:" in report.notes[0]  # the culprit's note names the line all the same


def test_the_first_note_says_which_rows_are_wrong_either_way() -> None:
    torch.manual_seed(0)
    model, x = _two(), _data(5, 4)
    model["b"].bias.register_hook(lambda g: 2 * g)

    def closure() -> Tensor:
        h = model["a"](x)
        unread = h.detach().amax()
        return (model["b"](h * h.detach()).square().mean() + 0 * unread).sum()

    first = check_closure(model, closure).notes[0]
    assert first.startswith("the gradient of a.weight, a.bias is right if what is detached at ")
    assert first.endswith("hold_detached=True; that of b.bias is wrong either way")
    assert first.count("test_held_values.py:") == 1  # the line whose value matters


@pytest.mark.parametrize("hold", [False, True], ids=["plain", "held"])
def test_what_the_forward_of_a_function_computes_is_not_held(hold: bool) -> None:
    for function in (right, Right.apply):
        report = _check(function, hold_detached=hold, include="c.*")
        assert report.passed, report
    assert _check(right, hold_detached=True).passed


class Lost(torch.autograd.Function):
    """x³ with a backward that autograd cannot differentiate, and does not refuse to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * 3 * ctx.x**2


def test_a_double_backward_that_a_function_loses_stays_wrong() -> None:
    model, x = nn.Linear(4, 3), _data(5, 4).requires_grad_()

    def closure() -> Tensor:
        (slope,) = torch.autograd.grad(Lost.apply(model(x)).sum(), x, create_graph=True)
        return slope.square().mean() + model(x).tanh().mean()

    assert not check_closure(model, closure, hold_detached=True).passed


def test_a_generator_gets_nothing_from_a_step_of_its_discriminator() -> None:
    torch.manual_seed(0)
    model, x = nn.ModuleDict({"g": nn.Linear(4, 3), "d": nn.Linear(3, 1)}), _data(5, 4)
    report = check_closure(model, lambda: F.softplus(model["d"](model["g"](x).detach())).mean(), hold_detached=True)
    statuses = {row.name: row.status for row in report}
    unused = dict.fromkeys(("g.weight", "g.bias"), Status.UNUSED)
    assert statuses == unused | dict.fromkeys(("d.weight", "d.bias"), Status.MATCH)


def test_given_gradients_that_stop_at_the_other_branch_are_wrong() -> None:
    model, x = nn.Linear(4, 1).double(), _data(5, 4).double()
    y = model(x)
    by_hand = {
        "right": torch.autograd.grad((y * y.detach().exp()).mean(), list(model.parameters()), retain_graph=True),
        "wrong": torch.autograd.grad((y.detach() * y.exp()).mean(), list(model.parameters())),
    }

    def closure() -> Tensor:
        y = model(x)
        return (y * y.detach().exp()).mean()

    for name, values in by_hand.items():
        given = dict(zip(("weight", "bias"), values, strict=True))
        report = check_closure(model, closure, gradients=given, hold_detached=True)
        assert report.passed is (name == "right")


def test_a_step_that_is_another_one_after_a_condition_on_theta_is_undecided() -> None:
    model = nn.Module()
    model.w = nn.Parameter(torch.ones(2))

    def closure() -> Tensor:
        y = model.w
        if bool(y[0] > 1):
            y = y + y.detach().sum()
        return (y * y.detach()).sum()

    report = check_closure(model, closure, hold_detached=True)
    assert [row.status for row in report] == [Status.UNDECIDED]
    assert any("evaluations detached other values than at θ" in note for note in report.notes)


def test_without_a_cut_the_check_is_the_plain_one() -> None:
    model, x = _two(), _data(5, 4)
    plain, held = (
        check_closure(model, lambda: model["b"](model["a"](x).tanh()).square().mean(), hold_detached=hold)
        for hold in (False, True)
    )
    assert [replace(row, seconds=0.0) for row in plain] == [replace(row, seconds=0.0) for row in held]
    assert plain.evaluations == held.evaluations
    assert "hold_detached=True, and nothing that J depends on is detached: nothing was held" in held.notes


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_calls_and_modes_are_as_before(fails: bool) -> None:
    model, closure = straight_through()
    before = nn.Module.__call__, vars(torch.autograd.Function)["apply"], function_modes_in_force()

    def interrupted() -> Tensor:
        if fails and function_modes_in_force():
            raise ZeroDivisionError
        return closure()

    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        check_closure(model, interrupted, hold_detached=True)
    assert before == (nn.Module.__call__, vars(torch.autograd.Function)["apply"], function_modes_in_force())


@pytest.mark.parametrize("spoiled", [False, True], ids=["right", "wrong"])
def test_what_a_step_left_in_grad(spoiled: bool) -> None:
    model, batch = Net(torch.tanh), (_data(5, 4), _data(5, 2))
    nn.MSELoss()(model(batch[0]), batch[1]).backward()
    if spoiled:
        assert model.b.weight.grad is not None
        model.b.weight.grad.mul_(-1)
    report = check_module(model, nn.MSELoss(), batch, gradients="grad", hold_detached=True)
    assert [row.name for row in report.mismatches] == ["b.weight"] * spoiled


@pytest.mark.parametrize("hold", [False, True], ids=["plain", "held"])
def test_a_monitor_holds_too(hold: bool) -> None:
    model, batch = Net(torch.tanh), (_data(5, 4), _data(5, 2))
    with GradientMonitor(model, nn.MSELoss(), hold_detached=hold, on_mismatch="record") as monitor:
        nn.MSELoss()(model(batch[0]), batch[1]).backward()
        report = monitor.step(batch)
    assert report is not None
    assert report.passed is hold


def test_the_option_is_a_flag() -> None:
    with pytest.raises(InvalidRequestError, match=r"hold_detached must be True or False, got int 1\."):
        _check(torch.tanh, hold_detached=1)
