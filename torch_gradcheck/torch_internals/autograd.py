"""The graph that autograd has recorded, hooks on its leaves, and whether a backward is running."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from torch.autograd.graph import GradientEdge

from torch_gradcheck.torch_internals.custom_ops import custom_op_of
from torch_gradcheck.torch_internals.missing import internal

Hooks = Mapping[int, Callable[..., Any]]
"""The hooks of a tensor by the number of their handle, in the order in which they run."""

CHECKPOINT_WITHOUT_GRAPH = "None of the inputs have requires_grad"
"""How the warning begins that a reentrant checkpoint gives where it is called without autograd."""


def nodes_from(starts: Iterable[Any]) -> Iterator[Any]:
    """Every node of the graph that can be reached from `starts`, once each; None among them stands for no node."""
    waiting, seen = list(starts), set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def node_of(output: Any) -> Any:
    """The node that a backward starts from at a tensor, None at a leaf, or at a `GradientEdge` that stands for one."""
    return output.node if isinstance(output, GradientEdge) else output.grad_fn


def leaf_of(node: Any) -> torch.Tensor | None:
    """The leaf in whose `.grad` a node accumulates; None for any other node."""
    leaf: torch.Tensor | None = getattr(node, "variable", None)
    return leaf


def function_of(node: Any) -> type[torch.autograd.Function] | None:
    """The `torch.autograd.Function` of the user's whose backward a node is; None for a node of torch's own."""
    function: type[torch.autograd.Function] | None = getattr(node, "_forward_cls", None)
    return function


def is_of_backward_hooks(function: type[torch.autograd.Function] | None) -> bool:
    """Whether a Function is torch's own, at which the backward hooks of a module see and change gradients."""
    return function is not None and function.__name__ == "BackwardHookFunction"


def number_of(node: Any) -> int:
    """The number of a node: nodes made in one thread are numbered in the order in which they are made."""
    return int(node._sequence_nr())


def next_number() -> int:
    """The number of the node that this thread makes next."""
    return int(internal(torch._C._autograd, "_get_sequence_nr", "tell in which module a node was made")())


class InputForm(NamedTuple):
    """What a gradient of an input of a Function has to be like.

    Attributes:
        shape, dtype, device: those of the input.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def input_forms(node: Any) -> dict[int, InputForm]:
    """The form of every argument of a Function that requires a gradient, by position; `node` is its node in the graph.

    A node has an edge for each tensor that its Function was given, none of them leading anywhere for a tensor that
    requires no gradient. What an edge leads to knows what gradients it takes.
    """
    edges = [edge for edge in node.next_functions if edge[0] is not None]
    asked = [position for position, needed in enumerate(node.needs_input_grad) if needed]
    pairs = zip(asked, edges, strict=False)
    return {position: _form(internal(to, "_input_metadata", "know inputs")[k]) for position, (to, k) in pairs}


def _form(metadata: Any) -> InputForm:
    return InputForm(tuple(metadata.shape), metadata.dtype, metadata.device)


def current_backward() -> Any:
    """What runs where a backward is asked for, by `torch.autograd.grad`, `backward()` or a reentrant checkpoint.

    It is called with the tensors that the backward starts from, and with arguments that only torch knows.
    """
    return internal(torch.autograd, "_engine_run_backward", "see every backward that starts")


def set_backward(run: Any) -> None:
    """Has this run from now on."""
    torch.autograd._engine_run_backward = run  # type: ignore[attr-defined]


def pulled_back(
    outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor]
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of Σ ⟨cotangent, output⟩, the graph kept; inside of vmap, too, for batched cotangents.

    `torch.autograd.grad` would look at shapes first, and import sympy for it: half a second.
    """
    run = current_backward()
    found: tuple[torch.Tensor | None, ...] = run(
        tuple(outputs), tuple(cotangents), True, False, tuple(inputs), allow_unreachable=True, accumulate_grad=False
    )
    return found


def current_function_backward() -> Any:
    """What runs where the backward of any `torch.autograd.Function` does: it is given the node, then the gradients."""
    return vars(_function_nodes())["apply"]


def set_function_backward(run: Any) -> None:
    """Has this run from now on."""
    _function_nodes().apply = run


def _function_nodes() -> Any:
    """The class of the nodes that Functions make in the graph."""
    return internal(torch.autograd.function, "BackwardCFunction", "see where the backward of Functions runs")


def reentrant_checkpoint() -> object:
    """The Function behind `torch.utils.checkpoint` with use_reentrant=True; None where this torch has none."""
    return getattr(torch.utils.checkpoint, "CheckpointFunction", None)


def function_forwards() -> frozenset[CodeType]:
    """The code of the forward of every `torch.autograd.Function` that there is."""
    waiting, codes = [torch.autograd.Function], set[CodeType]()
    while waiting:
        function = waiting.pop()
        waiting += function.__subclasses__()
        code = getattr(vars(function).get("forward"), "__wrapped__", None)
        code = getattr(code, "__code__", None) or getattr(function.forward, "__code__", None)
        if isinstance(code, CodeType) and function is not torch.autograd.Function:
            codes.add(code)
    return frozenset(codes)


def is_inside_function(frame: FrameType | None, forwards: frozenset[CodeType]) -> bool:
    """Whether the forward of a custom Function is running in `frame` or in one that it was called from.

    Args:
        frame: the innermost frame.
        forwards: what `function_forwards` gave; a Function that was made since is known by the context it is given.
    """
    while frame is not None:
        code = frame.f_code
        if code in forwards or (code.co_name == "forward" and _is_given_a_context(frame)):
            return True
        frame = frame.f_back
    return False


def _is_given_a_context(frame: FrameType) -> bool:
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    return bool(names) and isinstance(frame.f_locals.get(names[0]), torch.autograd.function.FunctionCtx)


def is_implicit_draw(node: Any) -> bool:
    """Whether a node differentiates a random draw by implicit reparameterisation.

    These are gamma and Dirichlet variates. Beta, chi-squared and Student's t distributions draw through them.
    """
    return bool(node.name().startswith(("StandardGammaBackward", "_DirichletBackward")))


def backward_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """What a Function runs backward: its `backward`, or `vjp`, another name for it; of an operator, the registered."""
    operator, of_base = custom_op_of(function), torch.autograd.Function
    if operator is not None:
        return operator.backward
    own = function.backward if function.backward is not of_base.backward else function.vjp
    return own if own is not of_base.vjp else function.backward


def has_forward_rule(function: type[torch.autograd.Function]) -> bool:
    """Whether a Function has a `jvp`, by which forward-mode autograd goes through it."""
    return function.jvp is not torch.autograd.Function.jvp


ARITHMETIC = (
    *("Add", "Sub", "Mul", "Div", "Lerp", "Maximum", "Minimum"),
    *("Prelu", "SoftmaxBackward", "LinalgSolveTriangular"),
)
"""How the names begin of nodes whose forward-mode rules compute with the tangents of all operands."""


def meets_constants(nodes: Iterable[Any]) -> bool:
    """Whether arithmetic in a graph has a constant beside an operand that has a graph, as x · 2 has.

    In forward mode torch makes zeros without memory for the tangent of the constant. What it computes of these goes by
    code that imports the compiler, which takes seconds.
    """
    arithmetic = [node for node in nodes if node.name().startswith(ARITHMETIC)]
    return any(following is None for node in arithmetic for following, _ in node.next_functions)


def has_vmap_rule(function: type[torch.autograd.Function]) -> bool:
    """Whether a Function has a `vmap` of its own, which says how it is batched."""
    return function.vmap is not torch.autograd.Function.vmap


def can_be_batched(function: type[torch.autograd.Function]) -> bool:
    """Whether vmap can go through a Function: it has a `vmap`, or lets torch make one of what it does."""
    return has_vmap_rule(function) or bool(function.generate_vmap_rule)


def saved_by(node: Any) -> dict[str, Any]:
    """What a node of torch's own has kept for its backward, by argument name; without what cannot be read any more."""
    found = {}
    for name in (each for each in dir(node) if each.startswith("_saved_")):
        with suppress(RuntimeError):  # freed, or written to since
            value = getattr(node, name)
            found[name.removeprefix("_saved_")] = value.detach() if isinstance(value, torch.Tensor) else value
    return found


OF_ALL_ENTRIES = ("MaxBackward", "MinBackward", "MedianBackward", "NanmedianBackward")
"""How the names begin of nodes of which those that keep a `result` share a gradient among all entries equal to it."""


def shares_among_tied(node: Any) -> bool:
    """Whether a node is that of a maximum, minimum or median of all entries, several of which are it."""
    saved = saved_by(node) if node.name().startswith(OF_ALL_ENTRIES) else {}
    return {"self", "result"} <= saved.keys() and int((saved["self"] == saved["result"]).sum()) > 1


def saved_tensor_hooks() -> Any:
    """The innermost pair of `torch.autograd.graph.saved_tensors_hooks` in force; None where there is none.

    torch 2.6 does not show them, and True stands for whichever it is.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return (_has_saved_tensor_hooks() or None) if top is None else top(True)


def _has_saved_tensor_hooks() -> bool:
    """Whether there are any: torch does not let them be forbidden then."""
    hooks = torch._C._autograd
    if not internal(hooks, "_saved_tensors_hooks_is_enabled", "see hooks on saved tensors")():
        return False
    try:
        hooks._saved_tensors_hooks_disable("")
    except RuntimeError:
        return True
    finally:  # forbidden they are, even so
        hooks._saved_tensors_hooks_enable()
    return False


def pop_saved_tensor_hooks_down_to(innermost: Any) -> None:
    """Ends those that an interrupt in the frames of their context manager left in force."""
    while (there := saved_tensor_hooks()) is not None and there != innermost:
        torch._C._autograd._pop_saved_tensors_default_hooks()


def in_backward() -> bool:
    """Whether a backward is running in this thread: a checkpoint then calls the model again."""
    return bool(internal(torch._C, "_current_graph_task_id", "tell a forward from a backward")() != -1)


def graph_is_used_up(error: BaseException) -> bool:
    """Whether an exception says that a backward has freed the graph which another one asks for."""
    return "second time" in str(error)


def writes_to_a_leaf(error: BaseException) -> bool:
    """Whether autograd has refused a write to a leaf, or to a view of one, that requires a gradient."""
    return "leaf Variable that requires grad" in str(error) and "in-place" in str(error)


@contextmanager
def before_hooks(parameter: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Collects the gradients of `parameter` inside the block as they are before the caller's hooks change them.

    Without those that have a graph: they are asked for to be differentiated, and do not reach `.grad`.
    """
    raw: list[torch.Tensor] = []
    if not parameter.requires_grad:
        yield raw
        return

    def keep(gradient: torch.Tensor | None) -> None:
        if gradient is not None and not torch.is_grad_enabled():
            raw.append(gradient.detach().clone())

    handle = parameter.register_hook(keep)
    _run_first(parameter, handle.id)
    try:
        yield raw
    finally:
        handle.remove()


def _run_first(tensor: torch.Tensor, number: int) -> None:
    """Moves the hook with the handle of this number before all others, which keep their order."""
    hooks = tensor._backward_hooks
    assert hooks is not None
    others = [(key, hook) for key, hook in hooks.items() if key != number]
    for key, _ in others:
        del hooks[key]
    hooks.update(others)


def tensor_hooks(tensor: torch.Tensor) -> Hooks | None:
    """A copy of the hooks that `register_hook` has left; None for a tensor that never had one."""
    hooks = tensor._backward_hooks
    return None if hooks is None else OrderedDict(hooks)


def has_hooks(tensor: torch.Tensor) -> bool:
    """Whether `register_hook` has left a hook on a tensor."""
    return bool(tensor._backward_hooks)


def hooks_of(tensor: torch.Tensor) -> list[Callable[..., Any]]:
    """The hooks that `register_hook` has left on a tensor, in the order in which they run."""
    return list((tensor._backward_hooks or {}).values())


def connect_hooks(tensor: torch.Tensor) -> None:
    """Has the hooks of a tensor object run for what it stands for now, after a swap.

    The hooks are an attribute of the Python object. Autograd learns of them where the attribute is assigned.
    """
    if tensor.requires_grad and tensor._backward_hooks:
        tensor._backward_hooks = tensor._backward_hooks


def restore_hooks(tensor: torch.Tensor, hooks: Hooks | None) -> None:
    """A tensor has the hooks again that `tensor_hooks` gave; those that were registered since are gone."""
    if hooks is None:
        if tensor._backward_hooks is not None:
            tensor._backward_hooks = None
    elif tensor._backward_hooks is not None and tensor._backward_hooks != hooks:
        tensor._backward_hooks.clear()
        tensor._backward_hooks.update(hooks)


def has_post_accumulate_hooks(tensor: torch.Tensor) -> bool:
    """Whether `register_post_accumulate_grad_hook` has left a hook on a leaf."""
    return bool(getattr(tensor, "_post_accumulate_grad_hooks", None))


def keep_post_accumulate_hooks(tensor: torch.Tensor) -> Callable[[], None]:
    """Remembers the hooks of `register_post_accumulate_grad_hook`; returns what leaves a leaf with these alone."""
    hooks = getattr(tensor, "_post_accumulate_grad_hooks", None)
    kept = None if hooks is None else OrderedDict(hooks)

    def restore() -> None:
        now = getattr(tensor, "_post_accumulate_grad_hooks", None)
        if kept is None and now is not None:
            tensor._post_accumulate_grad_hooks = None  # type: ignore[assignment]
        elif now is not None and now != kept:
            now.clear()  # autograd holds on to this very mapping
            now.update(kept)

    return restore


def put_post_accumulate_hooks_to_sleep(tensor: torch.Tensor) -> Callable[[], None]:
    """Has the hooks of `register_post_accumulate_grad_hook` on a leaf not run; returns what has them run again."""
    restore = keep_post_accumulate_hooks(tensor)
    if has_post_accumulate_hooks(tensor):
        tensor._post_accumulate_grad_hooks.clear()
    return restore


def post_accumulate_hooks(tensor: torch.Tensor) -> list[Callable[..., Any]]:
    """The hooks that `register_post_accumulate_grad_hook` has left on a leaf."""
    return list((getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values())
