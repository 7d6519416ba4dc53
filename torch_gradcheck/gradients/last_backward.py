"""The backward of a Function of the user's that has run last: where, on what, and what it has returned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.autograd import Function

from torch_gradcheck.gradients.function_backwards import FunctionBackwards
from torch_gradcheck.gradients.watched_backwards import CalledModules
from torch_gradcheck.objective.module_hooks import forward_hooks
from torch_gradcheck.objective.refused_places import named_module
from torch_gradcheck.objective.signatures import argument_names
from torch_gradcheck.torch_internals.autograd import backward_of, function_of, number_of
from torch_gradcheck.torch_internals.code_lines import at_line_of
from torch_gradcheck.torch_internals.custom_ops import custom_op_of, users_function
from torch_gradcheck.torch_internals.modules import module_at
from torch_gradcheck.torch_internals.refused_calls import CallWatch


class LastBackward:
    """The backward of a Function of the user's that has run last inside the block.

    Attributes:
        node: its node in the graph; None where none has run.
        function: the Function.
        given: how many gradients it was given.
        returned: what it has returned; None where it has not.
        calls: has watched the calls of torch in it: a mode outside of a backward is not in force inside of it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.node: Any = None
        self.function: type[Function] = Function
        self.given = 0
        self.returned: tuple[Any, ...] | None = None
        self.calls = CallWatch()
        self._model, self._modules = model, CalledModules()
        self._hooks = forward_hooks(model, stack=self._modules)
        self._backwards = FunctionBackwards(self._looked_at)

    def __enter__(self) -> None:
        self._backwards.__enter__()
        self._hooks.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(None, None, None)
        self._backwards.__exit__(*exception)

    def _looked_at(
        self, node: Any, function: type[Function], gradients: tuple[Any, ...], run: Callable[[], Any]
    ) -> Any:
        of_vmap = function_of(node) is not function  # torch adds an output, in which no gradient goes
        self.node, self.function, self.given, self.returned = node, function, len(gradients) - of_vmap, None
        with self.calls:
            returned = run()
        self.node, self.function = node, function  # it may have run others
        self.returned = returned if isinstance(returned, tuple) else (returned,)
        return returned

    def is_known(self, has_returned: bool) -> bool:
        """Whether it is a Function as the user wrote it, and has returned, or not, as torch says."""
        written = None if self.node is None else users_function(function_of(self.node) or Function)
        return written is self.function and (self.returned is not None) == has_returned

    @property
    def name(self) -> str:
        """The backward with its line and the module in which its Function was called."""
        operator, module = custom_op_of(self.function), self._modules.of_node(number_of(self.node))
        called = f"{self.function.__name__}.backward" if operator is None else f"the backward of {operator.name}"
        inside = "" if module is None else f", of {self.module(module)},"
        return f"{called}{at_line_of(backward_of(self.function))}{inside}"

    def module(self, name: str) -> str:
        """A module of the model in words."""
        return named_module(name, module_at(self._model, name))

    @property
    def current_module(self) -> str | None:
        """The module whose forward is running, in words; None for none."""
        return self.module(self._modules.current_module()) if self._modules.is_running() else None

    @property
    def count(self) -> int | None:
        """Where in what was returned the last gradient of the user's is: of an operator torch adds some; None: last."""
        added = len(self.node.needs_input_grad) - len(self.arguments)
        return -added if custom_op_of(self.function) is not None and added > 0 else None

    @property
    def arguments(self) -> list[str]:
        """The names of the arguments that the Function was called with."""
        count, operator = len(self.node.needs_input_grad), custom_op_of(self.function)
        return argument_names(self.function.apply, count) if operator is None else list(operator.arguments)
