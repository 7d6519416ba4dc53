"""Tensors of the batch, and those that a closure captures, are rows: right ones pass, wrong ones are found."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_gradcheck.engines.selection as selection
from torch_gradcheck import InvalidRequestError, Report, blind_spots, check_closure, check_module

Y = torch.tensor([[0.3, -1.2], [0.8, 0.1], [-0.5, 0.4], [1.1, -0.7]])
MSE = nn.MSELoss()


class DoublingTanh(torch.autograd.Function):
    """Wrong: the gradient is twice the right one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 2 * g * (1 - torch.tanh(x) ** 2)


class First(nn.Module):
    """tanh of the tensor in a batch, by autograd or by a wrong backward; no parameter lies upstream of it."""

    def __init__(self, wrong: bool, get: Callable[[Any], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.wrong, self.get = wrong, get

    def forward(self, batch: Any) -> Tensor:
        x = self.get(batch)
        x = torch.view_as_real(x).sum(-1) if x.is_complex() else x
        return DoublingTanh.apply(x) if self.wrong else torch.tanh(x)  # type: ignore[no-any-return,no-untyped-call]


def net(wrong: bool, get: Callable[[Any], Tensor] = lambda x: x) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(First(wrong, get), nn.Linear(3, 2))


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leaf(*shape: int, seed: int = 1) -> Tensor:
    return numbers(*(shape or (4, 3)), seed=seed).requires_grad_()


def rows_of(report: Report) -> dict[str, tuple[str, str]]:
    """Of the rows that are no parameters: name → status and role."""
    return {row.name: (row.status.value, row.role.value) for row in report if row.role != "parameter"}


class Graph:
    """Holds its tensors as graphs of other packages do; refers to itself."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.edges, self.itself = x, torch.arange(3), self


class Store:
    """Shows what it keeps in an attribute of its own as its items."""

    def __init__(self, x: Tensor) -> None:
        self._store = {"x": x}


@dataclasses.dataclass
class Sample:
    x: Tensor
    name: str


def retained() -> Tensor:
    x = leaf() * 1
    x.retain_grad()
    return x


Case = tuple[Callable[[], Any], str, Callable[[Any], Tensor]]


def as_it_is(x: Any) -> Tensor:
    assert isinstance(x, Tensor)
    return x


PLACES: dict[str, Case] = {
    "a leaf": (lambda: (leaf(), Y), "batch[0]", as_it_is),
    "not a leaf": (lambda: (leaf() * 2, Y), "batch[0]", as_it_is),
    "not a leaf, retain_grad": (lambda: (retained(), Y), "batch[0]", as_it_is),
    "a view of a leaf": (lambda: (leaf(5, 3)[1:], Y), "batch[0]", as_it_is),
    "a leaf that is a view": (lambda: (numbers(5, 3)[1:].requires_grad_(), Y), "batch[0]", as_it_is),
    "expanded": (lambda: (numbers(1, 3).expand(4, 3).requires_grad_(), Y), "batch[0]", as_it_is),
    "transposed": (lambda: (numbers(3, 4).t().requires_grad_(), Y), "batch[0]", as_it_is),
    "bfloat16": (lambda: (numbers(4, 3).bfloat16().requires_grad_(), Y), "batch[0]", as_it_is),
    "complex": (lambda: (torch.complex(leaf(), leaf(seed=2)), Y), "batch[0]", as_it_is),
    "conjugated": (lambda: (torch.complex(leaf(), leaf(seed=2)).conj(), Y), "batch[0]", as_it_is),
    "0-dim": (lambda: (torch.tensor(0.7).requires_grad_(), Y), "batch[0]", lambda x: x * numbers(4, 3)),
    "nested": (lambda: (({"a": [{"b": leaf()}]},), Y), "batch[0][0]['a'][0]['b']", lambda x: x["a"][0]["b"]),
    "in a dataclass": (lambda: (Sample(leaf(), "a"), Y), "batch[0].x", lambda x: x.x),
    "in an object": (lambda: (Graph(leaf()), Y), "batch[0].x", lambda x: x.x),
    "in an object's store": (lambda: (Store(leaf()), Y), "batch[0]['x']", lambda x: x._store["x"]),
}


@pytest.mark.parametrize(("made", "name", "get"), PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_a_tensor_of_the_batch_is_a_row(
    made: Callable[[], Any], name: str, get: Callable[[Any], Tensor], wrong: bool
) -> None:
    report = check_module(net(wrong, get), MSE, made())
    assert rows_of(report) == {name: ("mismatch" if wrong else "match", "input")}, str(report)
    assert report.proven is not wrong
    assert report.culprit == ("0" if wrong else None)
    if wrong:
        diagnosis = report[name].diagnosis
        assert diagnosis is not None
        assert (diagnosis.kind, diagnosis.factor) == ("scaled", pytest.approx(2.0))
        assert "autograd.Function DoublingTanh gives a wrong gradient for x" in report.notes[0]
        assert f"error of {name}" in report.notes[0]


class WithMask(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.net = net(wrong)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.net(x) * mask  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_the_rows_of_other_batches(wrong: bool) -> None:
    status = "mismatch" if wrong else "match"
    mapping = {"x": leaf(), "mask": torch.tensor(2)}
    assert rows_of(check_module(WithMask(wrong), torch.sum, mapping)) == {"batch['x']": (status, "input")}
    assert rows_of(check_module(net(wrong), torch.sum, leaf())) == {"batch": (status, "input")}
    alone = check_module(First(wrong), torch.sum, leaf())
    assert rows_of(alone) == {"batch": (status, "input")}
    assert len(alone) == 1, "a model without parameters can be checked"
    frozen = check_module(net(wrong).requires_grad_(False), MSE, (leaf(), Y))
    assert [row.status.value for row in frozen] == ["frozen", "frozen", status]
    assert frozen.passed is not wrong


def test_targets_on_trial() -> None:
    right = check_module(net(False), MSE, (numbers(4, 3), Y.clone().requires_grad_()))
    assert rows_of(right) == {"batch[1]": ("match", "input")}
    wrong = check_module(
        net(False), lambda y, t: MSE(y, DoublingTanh.apply(t)), (numbers(4, 3), Y.clone().requires_grad_())
    )  # type: ignore[no-untyped-call]
    assert rows_of(wrong) == {"batch[1]": ("mismatch", "input")}
    assert wrong.culprit == "loss_fn"


def test_one_tensor_at_two_places_is_one_row_and_what_is_detached_stays() -> None:
    x = leaf()
    report = check_module(net(False), lambda y, a, b: MSE(y, Y) + (a * b).sum(), (x, x, x.detach()))
    assert report.proven
    assert report["batch[0]"].aliases == ("batch[1]",)


def test_two_tensors_on_one_memory_have_a_gradient_each() -> None:
    x = leaf()
    flat, some = x.view(12), x[:2]
    report = check_module(net(True), lambda y, a, b: MSE(y, Y) + (a**2).sum() + (b**3).sum(), (x, flat, some))
    assert {name: status for name, (status, _) in rows_of(report).items()} == {
        "batch[0]": "mismatch",
        "batch[1]": "match",
        "batch[2]": "match",
    }


def test_a_parameter_in_the_batch_is_no_other_row() -> None:
    model = net(False)
    report = check_module(model, lambda y, w: MSE(y, Y) + w.square().sum(), (numbers(4, 3), model[1].weight))
    assert report.proven
    assert [row.name for row in report] == ["1.weight", "1.bias"]
    assert report["1.weight"].aliases == ("batch[1]",)


class Named(First):
    """Has a parameter by the name of the batch."""

    def __init__(self) -> None:
        super().__init__(wrong=False)
        self.batch = nn.Parameter(torch.tensor([0.5, -2.0, 1.5]))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.batch)


def test_a_name_that_a_parameter_has_is_set_apart() -> None:
    report = check_module(Named(), torch.sum, leaf())
    assert [row.name for row in report] == ["batch", "batch (input)"]


def test_a_tensor_without_entries_proves_nothing() -> None:
    report = check_module(net(False), lambda y, none: MSE(y, Y) + none.sum(), (numbers(4, 3), leaf(0, 3)))
    assert rows_of(report) == {"batch[1]": ("flat", "input")}


def test_an_input_that_is_detached() -> None:
    model = nn.Sequential(First(False, lambda x: x.detach()), nn.Linear(3, 2))
    lost = check_module(model, MSE, (leaf(), Y))
    assert rows_of(lost) == {"batch[0]": ("mismatch", "input")}
    assert "hold_detached=True" in lost.notes[0]
    assert rows_of(check_module(model, MSE, (leaf(), Y), hold_detached=True)) == {"batch[0]": ("unused", "input")}


class Sparse(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.net = net(wrong)

    def forward(self, a: Tensor, x: Tensor) -> Tensor:
        return self.net(torch.sparse.mm(a, x))  # type: ignore[no-any-return]


def test_what_cannot_be_perturbed_is_named_and_not_on_trial() -> None:
    adjacency = torch.eye(4).to_sparse().requires_grad_()
    report = check_module(Sparse(False), torch.sum, ((adjacency, leaf()),))
    assert rows_of(report) == {"batch[0][1]": ("match", "input")}
    assert "not on trial, since only ordinary dense tensors can be perturbed: batch[0][0]" in report.notes


# Nothing changes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_the_caller_keeps_his_tensors(wrong: bool) -> None:
    root = leaf()
    x, hooked = root * 2, list[float]()
    x.register_hook(lambda g: hooked.append(float(g.sum())))
    kept, before, version, made_by = leaf(seed=3), x.detach().clone(), x._version, x.grad_fn
    kept.grad = held = torch.ones(4, 3)
    check_module(net(wrong), lambda y, k: MSE(y, Y) + (k**2).sum(), (x, kept))
    assert torch.equal(x, before)
    assert (x._version, x.grad_fn) == (version, made_by)
    assert kept.grad is held
    assert torch.equal(held, torch.ones(4, 3))
    hooked.clear()
    x.sum().backward()  # type: ignore[no-untyped-call]
    assert hooked == [12.0]
    assert torch.equal(root.grad, torch.full((4, 3), 2.0))  # type: ignore[arg-type]


def test_a_forward_may_write_to_an_input_that_is_no_leaf() -> None:
    x = leaf() * 1
    report = check_module(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), MSE, (x, Y))
    assert rows_of(report) == {"batch[0]": ("match", "input")}
    assert (x < 0).any()


@pytest.mark.parametrize("made", [leaf, retained, lambda: leaf() * 1], ids=["leaf", "retained", "not a leaf"])
def test_a_hook_on_an_input_is_on_trial_as_one_on_a_parameter(made: Callable[[], Tensor]) -> None:
    x = made()
    x.register_hook(lambda g: 3 * g)
    report = check_module(net(False), MSE, (x, Y))
    assert rows_of(report) == {"batch[0]": ("mismatch", "input")}
    assert report.culprit == "batch[0]"
    assert "a hook on the input batch[0]" in report.notes[0]


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"include": "batch[0]"}, ["batch[0]"]),
        ({"include": ["batch*"]}, ["batch[0]"]),
        ({"exclude": "batch[*"}, ["1.weight", "1.bias"]),
        ({"include": "*.weight"}, ["1.weight"]),
        ({"perturb": 0.1}, ["1.weight", "1.bias", "batch[0]"]),
    ],
    ids=["itself", "a glob", "left out", "a parameter", "perturbed"],
)
def test_patterns_and_perturb(options: dict[str, Any], names: list[str]) -> None:
    x = leaf()
    report = check_module(net(False), MSE, (x, Y), **options)
    assert report.proven
    assert [row.name for row in report] == names


def test_a_pattern_that_matches_nothing_names_inputs() -> None:
    with pytest.raises(InvalidRequestError, match=r"no parameter of the model and no input; close names: batch\[0\]"):
        check_module(net(False), MSE, (leaf(), Y), include="bach[0]")


def test_gradients_by_hand_name_inputs_or_leave_them_out() -> None:
    model, x = net(False), leaf()
    MSE(model(x), Y).backward()
    of_model = {name: each.grad for name, each in model.named_parameters()}
    assert [row.name for row in check_module(model, MSE, (x, Y), gradients=of_model)] == ["1.weight", "1.bias"]
    assert check_module(model, MSE, (x, Y), gradients=of_model | {"batch[0]": x.grad}).proven
    off = check_module(model, MSE, (x, Y), gradients=of_model | {"batch[0]": 1.01 * x.grad})  # type: ignore[operator]
    assert rows_of(off) == {"batch[0]": ("mismatch", "input")}
    with pytest.raises(InvalidRequestError, match=r"no checked parameter or input; close names: batch\[0\]"):
        check_module(model, MSE, (x, Y), gradients=of_model | {"batch[1]": x.grad})
    with pytest.raises(
        InvalidRequestError, match=r"nothing for input 'batch\[0\]' of shape \(4, 3\); add it, or leave"
    ):
        check_module(model, MSE, (x, Y), gradients=of_model, include="*")


ENGINES = {
    "traced": (selection.traced, selection.eager),
    "memoized": (selection.memoized, selection.eager),
    "eager": (selection.eager,),
}


class Beside(nn.Module):
    """Has modules that do not see the input on trial, before and after it."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
        self.first, self.after = First(wrong), nn.Linear(3, 2)

    def forward(self, c: Tensor, x: Tensor) -> Tensor:
        return self.after(self.before(c) + self.first(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["exact", "projected"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_every_engine_perturbs_inputs(engine: str, method: str, wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "CANDIDATES", ENGINES[engine])
    torch.manual_seed(0)
    batch = ((numbers(9, 3).double(), numbers(9, 3, seed=2).double().requires_grad_()),)
    report = check_module(Beside(wrong).double(), torch.sum, batch, method=method)
    assert rows_of(report) == {"batch[0][1]": ("mismatch" if wrong else "match", "input")}
    assert report.culprit == ("first" if wrong else None)


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_an_image_goes_by_directions(wrong: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(First(wrong), nn.Conv2d(3, 4, 7, stride=7), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    report = check_module(model, nn.CrossEntropyLoss(), (leaf(1, 3, 28, 28), torch.tensor([2])), method="projected")
    assert rows_of(report) == {"batch[0]": ("mismatch" if wrong else "match", "input")}
    assert "channels" not in str(report), "the axes of an input are not those of a convolution's weight"


@pytest.mark.slow
def test_a_large_image_is_not_taken_for_cheap() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(First(False), nn.Conv2d(3, 4, 7, stride=7), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 3))
    report = check_module(model, nn.CrossEntropyLoss(), (leaf(1, 3, 224, 224), torch.tensor([2])), include="batch*")
    assert report.method == "projected"
    assert report.proven


def test_one_mistake_upstream_of_a_module_counts_inputs_too() -> None:
    torch.manual_seed(0)
    report = check_module(nn.Sequential(nn.Linear(3, 3), First(True), nn.Linear(3, 2)), MSE, (leaf(), Y))
    assert (
        "the same mistake in 3 tensors (2 parameters, 1 input) upstream of 1 (0.weight, 0.bias, batch[0]): scaled"
        in str(report.notes)
    )


def test_a_backward_that_is_not_one_function() -> None:
    runs = [0]

    class Drifting(DoublingTanh):
        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            runs[0] += 1
            return DoublingTanh.backward(ctx, g) * (0.5 + 0.1 * (runs[0] % 3))

    class Unsteady(First):
        def forward(self, batch: Any) -> Tensor:
            return Drifting.apply(batch)  # type: ignore[no-any-return,no-untyped-call]

    report = check_module(nn.Sequential(Unsteady(True), nn.Linear(3, 2)), MSE, (leaf(), Y))
    assert rows_of(report) == {"batch[0]": ("undecided", "input")}
    assert not report.passed
    assert "of the gradient of batch[0]" in report.notes[0]


def test_planted_faults_show_in_inputs() -> None:
    in_front = {row.module for row in blind_spots(net(False), MSE, (numbers(4, 3), Y)).hidden}
    assert "0" in in_front
    assert "0" not in {row.module for row in blind_spots(net(False), MSE, (leaf(), Y)).hidden}


# Closures -------------------------------------------------------------------------------------------------------------

GLOBAL = leaf()


class Trainer:
    def __init__(self, model: nn.Module) -> None:
        self.model, self.z = model, leaf()
        self.last = (self.z * 2).sum()
        self.optimizer = torch.optim.SGD([self.z], lr=0.1)

    def step(self) -> Tensor:
        return MSE(self.model(self.z), Y)  # type: ignore[no-any-return]


def of_variable(model: nn.Module) -> Callable[[], Any]:
    x, far = leaf(), leaf(50, 40)
    return lambda: None if far is None else MSE(model(x), Y)


def of_containers(model: nn.Module) -> Callable[[], Any]:
    inputs, xs = {"x": leaf()}, [numbers(2), leaf(seed=2)]
    return lambda: MSE(model(inputs["x"]), Y) + MSE(model(xs[1]), Y)


def of_global(model: nn.Module) -> Callable[[], Any]:
    return lambda: MSE(model(GLOBAL), Y)


def of_helper(model: nn.Module) -> Callable[[], Any]:
    x = leaf()

    def put_out() -> Any:
        return model(x)

    def closure() -> Any:
        model.zero_grad()
        loss = MSE(put_out(), Y)
        loss.backward()
        return loss

    return closure


def of_partial(model: nn.Module) -> Callable[[], Any]:
    return functools.partial(lambda w, *, shift: MSE(model(w + shift), Y), leaf(), shift=leaf(seed=2))


def of_free_parameter(model: nn.Module) -> Callable[[], Any]:
    x = nn.Parameter(numbers(4, 3))
    return lambda: MSE(model(x), Y)


def of_result(model: nn.Module) -> Callable[[], Any]:
    h = leaf() * 2
    return lambda: MSE(model(h), Y)


class Anchored(nn.Module):
    """Holds a tensor that is no parameter, one deeper down, and one that was computed before."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.inner, self.z = model, nn.Identity(), leaf()
        self.inner.z, self.last = leaf(seed=2), self.z * 2
        self.register_buffer("buffer", leaf(seed=3))

    def loss(self) -> Tensor:
        inner = self.inner.z
        assert isinstance(inner, Tensor)
        return MSE(self.model(self.z), Y) + MSE(self.model(inner), Y) + (0 * (self.last + self.buffer)).sum()  # type: ignore[no-any-return]


def of_attribute(model: nn.Module) -> Callable[[], Any]:
    anchored = Anchored(model)
    return lambda: 2 * anchored.loss()


CLOSURES: dict[str, tuple[Callable[[nn.Module], Callable[[], Any]], list[str]]] = {
    "a variable": (of_variable, ["x"]),
    "containers": (of_containers, ["inputs['x']", "xs[1]"]),
    "a bound object": (lambda model: Trainer(model).step, ["self.z"]),
    "attributes of a module": (of_attribute, ["anchored.z", "anchored.inner.z"]),
    "a method of a module": (lambda model: Anchored(model).loss, ["self.z", "self.inner.z"]),
    "a global": (of_global, ["GLOBAL"]),
    "of a helper, backward inside": (of_helper, ["x"]),
    "of a partial": (of_partial, ["args[0]", "shift"]),
    "a parameter of no module": (of_free_parameter, ["x"]),
    "computed before": (of_result, ["h"]),
}


@pytest.mark.parametrize(("made", "names"), CLOSURES.values(), ids=CLOSURES)
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_what_a_closure_captures_is_a_row(
    made: Callable[[nn.Module], Callable[[], Any]], names: list[str], wrong: bool
) -> None:
    model = net(wrong)
    report = check_closure(model, made(model))
    assert rows_of(report) == dict.fromkeys(names, ("mismatch" if wrong else "match", "captured")), str(report)
    assert report.proven is not wrong
    assert report.culprit == ("0" if wrong else None)


def test_what_other_modules_and_optimizers_hold_is_no_row() -> None:
    maker, judge = nn.Linear(3, 3), net(False)
    parameters, optimizer = list(maker.parameters()), torch.optim.SGD(maker.parameters(), lr=0.1)
    own = list(judge.parameters())

    def closure() -> Any:
        optimizer.zero_grad()
        decay = sum((each**2).sum() for each in own)
        return MSE(judge(maker(numbers(4, 3)).detach()), Y) + decay + 0 * parameters[0].detach().sum()

    report = check_closure(judge, closure)
    assert report.proven
    assert [(row.name, row.aliases) for row in report] == [("1.weight", ()), ("1.bias", ())]


def test_a_constant_computed_before_is_no_row_and_a_leaf_is() -> None:
    model, value, target = net(False), leaf(4, 2) * 2, leaf(4, 2)
    assert check_closure(model, lambda: MSE(model(numbers(4, 3)), value.detach())).proven
    lost = check_closure(model, lambda: MSE(model(numbers(4, 3)), target.detach()))
    assert rows_of(lost) == {"target": ("mismatch", "captured")}


def test_patterns_name_what_is_captured_whether_it_is_read_or_not() -> None:
    model, x, unread = net(False), leaf(), leaf()

    def closure() -> Any:
        return None if unread is None else MSE(model(x), Y)

    assert [row.name for row in check_closure(model, closure, exclude=["*.bias", "unread"])] == ["1.weight", "x"]
    with pytest.raises(InvalidRequestError, match="the closure does not read unread"):
        check_closure(model, closure, include="unread")


def test_what_the_model_put_out_before_is_not_its_loss() -> None:
    model = net(False)
    output = model(numbers(4, 3))
    with pytest.raises(InvalidRequestError, match="does not depend on any of the 2 checked parameters"):
        check_closure(model, lambda: MSE(output, Y))


def test_a_captured_tensor_with_retain_grad_cannot_be_lent() -> None:
    model, x = net(False), retained()
    with pytest.raises(InvalidRequestError, match=r"x is held by .*retain_grad\(\) was called on it.*detach\(\)"):
        check_closure(model, lambda: MSE(model(x), Y))
    x.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(x.grad, torch.ones(4, 3))  # type: ignore[arg-type]


def test_derivatives_by_an_input_that_the_loss_takes() -> None:
    """The loss captures the very tensor of the batch, as those of physics-informed networks do."""
    torch.manual_seed(0)
    x = leaf(5, 1)

    def residual(u: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (slope - u).square().mean()

    report = check_module(nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), residual, x)
    assert rows_of(report) == {"batch": ("match", "input")}


def test_a_detached_twin_stays_where_it_is() -> None:
    model, x = net(False), leaf()
    before = x.detach()
    assert check_closure(model, lambda: MSE(model(x), Y) + (x * before).sum()).proven


class OnceOnly(torch.autograd.Function):
    """x³, right once; its double backward takes what it has saved for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slope = 3 * x.detach() ** 2
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g * ctx.slope  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_second_derivatives_of_inputs(wrong: bool) -> None:
    torch.manual_seed(0)
    linear, x, captured = nn.Linear(3, 2), leaf(), leaf() * 1
    cube: Callable[..., Any] = OnceOnly.apply if wrong else lambda x: x**3
    status = "mismatch" if wrong else "match"
    assert rows_of(check_module(linear, lambda y: cube(y).sum(), x, order=2)) == {"batch": (status, "input")}
    report = check_closure(linear, lambda: cube(linear(captured)).sum(), order=2)
    assert rows_of(report) == {"captured": (status, "captured")}


class WrongSlope(DoublingTanh):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x))  # type: ignore[no-any-return]


class Unmasked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g


class OnlyOwnTerms(torch.autograd.Function):
    """Softmax without the term that its normalisation makes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.softmax(-1))
        return x.softmax(-1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g * ctx.saved_tensors[0]  # type: ignore[no-any-return]


class Applied(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)  # type: ignore[no-any-return,no-untyped-call]


@pytest.mark.parametrize(
    ("function", "kind"),
    [(WrongSlope, "slope"), (Unmasked, "unmasked"), (OnlyOwnTerms, "projection")],
    ids=["slope", "mask", "normalisation"],
)
def test_the_kind_of_mistake_of_a_first_layer(function: type[torch.autograd.Function], kind: str) -> None:
    """It is told by what the layer gives for its input: the row itself."""
    torch.manual_seed(0)
    report = check_module(nn.Sequential(Applied(function), nn.Linear(5, 2)), MSE, (leaf(4, 5), Y))
    assert report.culprit == "0"
    diagnosis = report["batch[0]"].diagnosis
    assert diagnosis is not None
    assert diagnosis.kind == kind
    assert f"the input x of autograd.Function {function.__name__}" in diagnosis.message
