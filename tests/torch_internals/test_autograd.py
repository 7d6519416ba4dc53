"""Why the graph of autograd is looked into: hooks that change gradients, checkpoints, draws, backwards in J itself."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.distributions import Beta, Dirichlet, Gamma, Normal
from torch.utils.checkpoint import checkpoint

from torch_gradcheck.torch_internals.autograd import (
    CHECKPOINT_WITHOUT_GRAPH,
    InputForm,
    backward_of,
    before_hooks,
    can_be_batched,
    connect_hooks,
    current_backward,
    current_function_backward,
    function_forwards,
    function_of,
    graph_is_used_up,
    has_forward_rule,
    has_hooks,
    has_post_accumulate_hooks,
    has_vmap_rule,
    hooks_of,
    in_backward,
    input_forms,
    is_implicit_draw,
    is_inside_function,
    is_of_backward_hooks,
    keep_post_accumulate_hooks,
    leaf_of,
    meets_constants,
    next_number,
    node_of,
    nodes_from,
    number_of,
    pop_saved_tensor_hooks_down_to,
    post_accumulate_hooks,
    pulled_back,
    put_post_accumulate_hooks_to_sleep,
    reentrant_checkpoint,
    restore_hooks,
    saved_by,
    saved_tensor_hooks,
    set_backward,
    set_function_backward,
    shares_among_tied,
    tensor_hooks,
    writes_to_a_leaf,
)
from torch_gradcheck.torch_internals.missing import MissingInTorchError
from torch_gradcheck.torch_internals.tensors import swap


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return 2 * g


def test_every_node_is_met_once_and_leaves_are_known() -> None:
    """Which parameters a draw depends on is read off the graph."""
    w, v = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    doubled = w * 2
    J = (doubled + doubled * v).sum()
    nodes = list(nodes_from([J.grad_fn, None]))
    assert len(nodes) == len(set(nodes)) == 6
    assert [leaf for leaf in map(leaf_of, nodes) if leaf is w or leaf is v].__len__() == 2
    assert leaf_of(J.grad_fn) is None


def test_the_graph_is_followed_through_a_custom_function() -> None:
    """Its node is written in Python, and lives only as long as what was computed by it."""
    w = torch.ones(2, requires_grad=True)
    J = Double.apply(w).sum()
    custom = [node for node in nodes_from([J.grad_fn]) if node.name() == "DoubleBackward"]
    assert [leaf_of(node) is w for node in nodes_from(custom)] == [False, True]


def test_a_reentrant_checkpoint_says_where_it_misses_autograd() -> None:
    """J is then evaluated with autograd on."""
    with torch.no_grad(), pytest.warns(UserWarning, match=CHECKPOINT_WITHOUT_GRAPH):
        checkpoint(torch.sin, torch.ones(2), use_reentrant=True)


DRAWS = {
    "gamma": (lambda x: Gamma(x, x), True),
    "beta": (lambda x: Beta(x, x), True),
    "dirichlet": (Dirichlet, True),
    "normal": (lambda x: Normal(x, x), False),
}


@pytest.mark.parametrize(("law", "implicit"), DRAWS.values(), ids=DRAWS)
def test_draws_by_implicit_reparameterisation_are_seen_in_the_graph(law: Any, implicit: bool) -> None:
    """Their gradient is not the derivative of one draw."""
    w = torch.ones(2, requires_grad=True)
    J = law(w.exp()).rsample().sum()
    assert any(map(is_implicit_draw, nodes_from([J.grad_fn]))) is implicit


def test_a_backward_that_runs_is_seen() -> None:
    """A checkpoint calls the model again in it, which is no forward of a training step."""
    seen = []
    w = torch.ones(2, requires_grad=True)
    w.register_hook(lambda g: seen.append(in_backward()))  # type: ignore[no-untyped-call]
    w.sum().backward()
    assert seen == [True]
    assert not in_backward()


def test_a_torch_that_does_not_tell_of_backwards_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_current_graph_task_id")
    with pytest.raises(MissingInTorchError, match="tell a forward from a backward"):
        in_backward()


def test_a_graph_that_a_backward_has_used_up_is_told_from_other_errors() -> None:
    """A closure that calls backward() itself: `.grad` then holds the gradient on trial."""
    w = torch.ones(2, requires_grad=True)
    J = w.exp().sum()
    J.backward()
    with pytest.raises(RuntimeError) as used_up:
        torch.autograd.grad(J, w)
    assert graph_is_used_up(used_up.value)
    with pytest.raises(RuntimeError) as other:
        torch.autograd.grad(torch.ones(()), w)
    assert not graph_is_used_up(other.value)


def test_gradients_are_seen_before_hooks_change_them_and_hooks_run_as_ever() -> None:
    """Tells a wrong backward from a hook that changes a right one."""
    w, order = torch.ones(2, requires_grad=True), []
    w.register_hook(lambda g: order.append("first"))  # type: ignore[no-untyped-call]
    w.register_hook(lambda g: 3 * g)  # type: ignore[no-untyped-call]
    with before_hooks(w) as raw:
        w.sum().backward()
    assert [g.tolist() for g in raw] == [[1, 1]]
    assert w.grad is not None
    assert w.grad.tolist() == [3, 3]
    w.sum().backward()
    assert len(raw) == 1
    assert order == ["first", "first"]


def test_gradients_that_j_differentiates_are_none_of_a_parameters() -> None:
    """A penalty on them asks for them; what reaches `.grad` comes later."""
    w = torch.ones(2, requires_grad=True)
    with before_hooks(w) as raw:
        (gradient,) = torch.autograd.grad(w.square().sum(), w, create_graph=True)
        gradient.square().sum().backward()
    assert [g.tolist() for g in raw] == [[8, 8]]


def test_the_backward_of_every_function_can_be_replaced_and_comes_back() -> None:
    """The search for a culprit sees where a Function's backward calls modules, and where J differentiates it."""
    w, seen, run = torch.ones(2, requires_grad=True), list[Any](), current_function_backward()
    y = Double.apply(w)
    node = y.grad_fn

    def watched(node: Any, *gradients: torch.Tensor) -> Any:
        seen.append((node, [g.tolist() for g in gradients], torch.is_grad_enabled()))
        return run(node, *gradients)

    set_function_backward(watched)
    try:
        (gradient,) = torch.autograd.grad(y.sum(), w, create_graph=True)
    finally:
        set_function_backward(run)
    assert current_function_backward() is run
    assert seen == [(node, [[1, 1]], True)]
    assert gradient.tolist() == [2, 2]
    Double.apply(w).sum().backward()
    assert len(seen) == 1


@pytest.mark.parametrize("operation", [torch.max, torch.min, torch.median, torch.nanmedian])
def test_a_gradient_that_is_shared_among_tied_entries_is_seen(operation: Any) -> None:
    """vmap gives it to one of them."""
    tied, apart = torch.ones(3, requires_grad=True), torch.arange(3.0, requires_grad=True)
    assert shares_among_tied(operation(tied).grad_fn)
    assert not shares_among_tied(operation(apart).grad_fn)
    assert not shares_among_tied(operation(tied, 0)[0].grad_fn)
    assert not shares_among_tied(tied.amax().grad_fn)


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"), reason="this torch does not tell hooks apart"
)
def test_hooks_on_saved_tensors_that_an_interrupt_leaves_behind_are_taken_away() -> None:
    """The search for a culprit looks at what is saved for the backward."""
    kept = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with kept:
        before = saved_tensor_hooks()
        torch.autograd.graph.saved_tensors_hooks(lambda x: x + 1, lambda x: x).__enter__()
        assert saved_tensor_hooks() != before
        pop_saved_tensor_hooks_down_to(before)
        assert saved_tensor_hooks() == before
    assert saved_tensor_hooks() is None
    pop_saved_tensor_hooks_down_to(None)


def test_a_torch_that_does_not_show_hooks_on_saved_tensors_says_whether_there_are_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As torch 2.6; where a transform forbids them, there are none."""
    monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks", raising=False)
    assert saved_tensor_hooks() is None
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert saved_tensor_hooks() is True
    torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x).__enter__()
    pop_saved_tensor_hooks_down_to(None)
    assert saved_tensor_hooks() is None
    with torch.autograd.graph.disable_saved_tensors_hooks("as in a transform"):
        assert saved_tensor_hooks() is None
        with pytest.raises(RuntimeError, match="as in a transform"):
            torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x).__enter__()


def test_a_frozen_parameter_has_no_gradients_before_hooks() -> None:
    with before_hooks(torch.ones(2)) as raw:
        assert raw == []


def test_hooks_of_the_callers_run_for_the_copy_that_is_swapped_in_and_come_back() -> None:
    """A hook on a parameter is part of the gradient on trial; one that the model adds meanwhile goes with the copy."""
    w, copy = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    assert not has_hooks(w)
    w.register_hook(lambda g: 3 * g)  # type: ignore[no-untyped-call]
    hooks = tensor_hooks(w)
    swap(w, copy)
    connect_hooks(w)
    w.sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == [3, 3]
    w.register_hook(lambda g: 0 * g)  # type: ignore[no-untyped-call]
    swap(w, copy)
    restore_hooks(w, hooks)
    assert has_hooks(w)
    w.sum().backward()
    assert w.grad.tolist() == [3, 3]


def test_a_tensor_without_hooks_has_none_again() -> None:
    w = torch.ones(2, requires_grad=True)
    hooks = tensor_hooks(w)
    assert hooks is None
    w.register_hook(lambda g: 0 * g)  # type: ignore[no-untyped-call]
    restore_hooks(w, hooks)
    assert not has_hooks(w)
    restore_hooks(w, None)


def test_a_hook_that_takes_grad_inside_the_backward_is_seen() -> None:
    """Optimizers that step in the backward: `.grad` may be gone when the step is checked."""
    w = torch.ones(2, requires_grad=True)
    assert not has_post_accumulate_hooks(w)
    handle = w.register_post_accumulate_grad_hook(lambda parameter: None)
    assert has_post_accumulate_hooks(w)
    assert len(post_accumulate_hooks(w)) == 1
    handle.remove()
    assert not has_post_accumulate_hooks(w)
    assert post_accumulate_hooks(w) == []


def test_the_node_behind_an_output() -> None:
    """A backward starts at tensors, or at edges that stand for them."""
    w = torch.ones(2, requires_grad=True)
    y = w * 2
    assert node_of(y) is y.grad_fn
    assert node_of(get_gradient_edge(y)) is y.grad_fn
    assert node_of(w) is None


def test_hooks_on_the_accumulation_sleep_and_wake() -> None:
    """They step optimizers: a backward of a check must not run them."""
    w = torch.ones(2, requires_grad=True)
    fired: list[torch.Tensor] = []
    w.register_post_accumulate_grad_hook(fired.append)
    wake = put_post_accumulate_hooks_to_sleep(w)
    w.sum().backward()
    assert fired == []
    wake()
    w.sum().backward()
    assert len(fired) == 1


@pytest.mark.parametrize("before", [False, True], ids=["none before", "one before"])
def test_hooks_on_the_accumulation_that_came_since_go(before: bool) -> None:
    """A forward may register some on what is lent to it."""
    w, fired = torch.ones(2, requires_grad=True), list[str]()
    if before:
        w.register_post_accumulate_grad_hook(lambda _: fired.append("first"))
    restore = keep_post_accumulate_hooks(w)
    w.register_post_accumulate_grad_hook(lambda _: fired.append("later"))
    restore()
    assert len(post_accumulate_hooks(w)) == before
    if before:
        w.sum().backward()
    assert fired == ["first"] * before
    w.register_post_accumulate_grad_hook(lambda _: fired.append("again"))
    w.sum().backward()
    assert fired[-1] == "again"


def test_the_hooks_of_a_tensor_are_listed_in_order() -> None:
    """A hook that changes a gradient is named with its line."""

    def first(g: torch.Tensor) -> None: ...

    def second(g: torch.Tensor) -> None: ...

    w = torch.ones(2, requires_grad=True)
    assert hooks_of(w) == []
    w.register_hook(first)  # type: ignore[no-untyped-call]
    w.register_hook(second)  # type: ignore[no-untyped-call]
    assert hooks_of(w) == [first, second]


def test_what_a_node_has_saved_is_read_until_it_is_freed() -> None:
    """An infinite gradient is explained by the input at which it arises."""
    x = torch.tensor([0.0, 4.0], requires_grad=True)
    y = x.sqrt()
    saved = saved_by(y.grad_fn)
    assert saved["result"].tolist() == [0, 2]
    assert not saved["result"].requires_grad
    y.sum().backward()
    assert saved_by(y.grad_fn) == {}


def test_the_backward_of_a_function_may_be_called_vjp() -> None:
    class Old(torch.autograd.Function):
        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return grad

    class Vjp(torch.autograd.Function):
        @staticmethod
        def vjp(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return grad

    assert backward_of(Old) is Old.backward
    assert backward_of(Vjp) is Vjp.vjp
    assert backward_of(torch.autograd.Function) is torch.autograd.Function.backward


class _OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, asked: Any) -> torch.Tensor:
        asked()
        return x.clone()


class _NewStyle(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, asked: Any) -> torch.Tensor:
        asked()
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


@pytest.mark.parametrize("function", [_OldStyle, _NewStyle])
def test_the_forward_of_a_function_is_told_from_a_block_without_grad(function: Any) -> None:
    """Nothing that it computes is a value that the user took out of the graph."""
    known, answers = function_forwards(), list[bool]()

    def ask() -> None:
        answers.append(is_inside_function(sys._getframe(), known))

    applied = function.apply
    applied(torch.zeros(2, requires_grad=True), ask)
    with torch.no_grad():
        ask()
    assert answers == [True, False]


def test_a_function_made_later_is_known_by_its_context() -> None:
    """Custom operators make one when they are first called."""
    known, answers = function_forwards(), list[bool]()

    class Later(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            answers.append(is_inside_function(sys._getframe(), known))
            return x.clone()

    Later.apply(torch.zeros(2, requires_grad=True))
    assert answers == [True]


def test_the_function_of_reentrant_checkpoints() -> None:
    """Its forward is the user's own code, and no Function's affair."""
    x = torch.zeros(2, requires_grad=True)
    node = checkpoint(torch.sin, x, use_reentrant=True).grad_fn
    assert type(node).__name__ == f"{getattr(reentrant_checkpoint(), '__name__', None)}Backward"


class Triple(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 3 * x

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return 3 * g


def test_the_function_behind_a_node_is_known() -> None:
    """Where two runs of a backward part, the report names it."""
    w = torch.ones(2, requires_grad=True)
    node = Triple.apply(w).grad_fn
    assert function_of(node) is Triple
    assert function_of((2 * w).grad_fn) is None
    assert not is_of_backward_hooks(Triple)
    assert not is_of_backward_hooks(None)


def test_nodes_are_numbered_in_the_order_in_which_they_are_made() -> None:
    """In which module a node was made is read off its number."""
    w = torch.ones(2, requires_grad=True)
    before = next_number()
    one = Triple.apply(w)
    other = one.sin()
    assert before == number_of(one.grad_fn) < number_of(other.grad_fn) < next_number()


def test_the_node_of_a_backward_hook_is_the_one_that_its_module_makes_after_its_call() -> None:
    """A hook that changes gradients is told as one, and as one of its module."""
    model, ends = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), []
    model[0].register_full_backward_pre_hook(lambda module, arrived: None)
    model[0].register_forward_hook(lambda *_: ends.append(next_number()), always_call=True)
    nodes = list(nodes_from([model(torch.ones(1, 2)).grad_fn]))
    (hooked,) = (node for node in nodes if is_of_backward_hooks(function_of(node)))
    assert ends == [number_of(hooked)]


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_every_backward_is_seen_to_start(reentrant: bool) -> None:
    """Two runs are compared node by node: in a checkpoint, and where the closure runs the backward itself, too."""
    w, run, starts = torch.ones(2, requires_grad=True), current_backward(), list[str]()

    def watched(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        starts.extend(tensor.grad_fn.name() for tensor in tensors)
        return run(tensors, *args, **kwargs)

    set_backward(watched)
    try:
        w.square().sum().backward()
        torch.autograd.grad(w.square().mean(), [w])
        checkpoint(lambda x: x.sin(), w, use_reentrant=reentrant).prod().backward()
    finally:
        set_backward(run)
    assert starts == ["SumBackward0", "MeanBackward0", "ProdBackward0", *["SinBackward0"] * reentrant]
    assert current_backward() is run


class Marking(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 2 * gradient


@pytest.mark.parametrize(
    "write",
    [lambda x: x.mul_(2), lambda x: x[0].mul_(2), Marking.apply],
    ids=["a leaf", "a view", "a Function"],
)
def test_a_refused_write_to_a_leaf_is_told_from_other_errors(write: Any) -> None:
    """Functions that write to their arguments have to be given copies of them."""
    with pytest.raises(RuntimeError) as caught:
        write(torch.ones(2, requires_grad=True))
    assert writes_to_a_leaf(caught.value)
    assert not writes_to_a_leaf(RuntimeError("one of the variables has been modified by an inplace operation"))


class _Scaled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Any, n: Any, b: Any) -> Any:
        return x * n + b

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.n = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g * ctx.n, None, g.sum(0)

    @staticmethod
    def jvp(ctx: Any, dx: Any, dn: Any, db: Any) -> Any:
        return dx * ctx.n + db


class _Batched(_Scaled):
    generate_vmap_rule = False

    @staticmethod
    def vmap(info: Any, dims: Any, x: Any, n: Any, b: Any) -> Any:
        return _Scaled.apply(x, n, b), dims[0]


def test_a_node_knows_the_forms_of_the_arguments_that_require_a_gradient() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    b = torch.ones(3, requires_grad=True)
    one = _Scaled.apply(x, 2, b.double())  # type: ignore[no-untyped-call]
    both = _Scaled.apply(b.exp().expand(2, 3), 2, b)  # type: ignore[no-untyped-call]
    assert input_forms(one.grad_fn) == {2: InputForm((3,), torch.float64, torch.device("cpu"))}
    assert input_forms(both.grad_fn) == {
        0: InputForm((2, 3), torch.float32, torch.device("cpu")),
        2: InputForm((3,), torch.float32, torch.device("cpu")),
    }


def test_a_gradient_is_pulled_back_without_sympy_and_inside_of_vmap() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    unused = torch.ones(1, requires_grad=True)
    outputs, batch = (x**2, x.sum()), (torch.eye(2), torch.ones(2))
    assert pulled_back(outputs, (x, unused), (torch.ones(2), torch.tensor(1.0)))[1] is None
    together = torch.vmap(lambda *v: pulled_back(outputs, (x,), v)[0])(*batch)
    assert together.tolist() == [[3.0, 1.0], [1.0, 5.0]]
    assert x.grad is None


def test_the_rules_of_a_function_are_known() -> None:
    assert has_forward_rule(_Scaled)
    assert not has_forward_rule(torch.autograd.Function)
    assert [has_vmap_rule(each) for each in (_Scaled, _Batched)] == [False, True]
    assert [can_be_batched(each) for each in (_Scaled, _Batched, torch.autograd.Function)] == [True, True, False]


def test_a_graph_in_which_forward_mode_meets_constants_is_known() -> None:
    x, w = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)

    def meets(y: torch.Tensor) -> bool:
        return meets_constants(nodes_from([y.grad_fn]))

    assert [meets(y) for y in (x * 2, x + torch.ones(2), x / w.detach())] == [True, True, True]
    assert [meets(y) for y in (x * w, x.where(x > 0, 0.0), torch.empty(2).copy_(x))] == [False, False, False]
