"""The backwards of the user's Functions, each looked at while autograd runs it; hooks and torch's own are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.autograd import Function

from torch_gradcheck.torch_internals.autograd import current_function_backward, function_of, set_function_backward
from torch_gradcheck.torch_internals.custom_ops import users_function

Look = Callable[[Any, type[Function], tuple[Any, ...], Callable[[], Any]], Any]
"""Is given the node, its Function, the gradients of its outputs and what runs its backward; returns what that does."""


class FunctionBackwards:
    """Has `look` run the backward of each of the user's Functions inside of the block."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def __enter__(self) -> None:
        self._run = run = current_function_backward()

        def looked_at(node: Any, *gradients: Any) -> Any:
            function = users_function(function_of(node) or Function)
            if function is None:
                return run(node, *gradients)
            return self._look(node, function, gradients, lambda: run(node, *gradients))

        set_function_backward(looked_at)

    def __exit__(self, *exception: object) -> None:
        set_function_backward(self._run)
