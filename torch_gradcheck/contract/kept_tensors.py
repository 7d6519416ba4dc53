"""Tensors that a function is lent and has to leave as they are, and the line of the user's that writes to one."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch

from torch_gradcheck.contract.comparison import difference, same_bits
from torch_gradcheck.torch_internals.code_lines import CodeLine, calling_line
from torch_gradcheck.torch_internals.dispatch import DispatchMode
from torch_gradcheck.torch_internals.tensors import is_wrapper, version_of


@dataclass
class KeptTensors:
    """Tensors beside what they held: a write past the version counter, as by `.data` or numpy, is seen as well."""

    _kept: list[tuple[str, torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """Takes down what the tensor holds now; one that has no numbers of its own, as a sparse one, is passed over."""
        if tensor.layout is torch.strided and not is_wrapper(tensor):
            self._kept.append((name, tensor, tensor.detach().clone()))

    def put_back(self) -> None:
        """Has each tensor hold what it held, if it holds something else by now."""
        for _, tensor, before in self._kept:
            if not same_bits(tensor.detach(), before):
                tensor.data = tensor.data.copy_(before) if tensor.shape == before.shape else before.clone()

    def tensor(self, name: str) -> torch.Tensor | None:
        """The tensor of this name."""
        return next((tensor for known, tensor, _ in self._kept if known == name), None)

    def written(self) -> dict[str, str]:
        """Name → the words "is 2 at [0], should be 1" for each tensor that holds something else by now."""
        changed = [each for each in self._kept if not same_bits(each[1].detach(), each[2])]
        return {name: difference(tensor.detach(), before, 0.0) for name, tensor, before in changed}


class WriteWatch(DispatchMode):
    """Sees after which operation a tensor holds something else; in force while the function runs once more.

    Args:
        kept: the tensors.
        name: of the tensor that is looked at.
        inside: the function of this package that runs the user's; lines outside of its call tell nothing.

    Attributes:
        line: of the user's, that asked for the operation; None where there is none, or nothing was written by one.
    """

    def __init__(self, kept: KeptTensors, name: str, inside: CodeType) -> None:
        super().__init__()
        self._kept, self._name, self._inside = kept, name, inside
        self._found = False
        self._version: int | None = None
        self.line: CodeLine | None = None

    @property
    def where(self) -> str:
        """The line as " (FILE:LINE)"; "" where there is none."""
        return "" if self.line is None else f" ({self.line})"

    @property
    def by_choice_of_torch(self) -> bool:
        """Whether torch writes to the tensor by an operation of its own that autograd is not to see, with autograd on.

        `batch_norm` writes to its running statistics like that: past the version counter or, where they require a
        gradient, past the graph.
        """
        tensor = self._kept.tensor(self._name)
        if tensor is None or self._version is None:
            return False
        return tensor.requires_grad or version_of(tensor) == self._version

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._found = self._found or self._is_written  # by numpy, say, since the last operation
        result = func(*args, **(kwargs or {}))
        if not self._found and self._is_written:
            self._found, self.line = True, calling_line(inside=self._inside)
            self._take_down(func, [*args, *(kwargs or {}).values()])
        return result

    @property
    def _is_written(self) -> bool:
        return self._name in self._kept.written()

    def _take_down(self, func: Any, args: list[Any]) -> None:
        tensor = self._kept.tensor(self._name)
        itself = tensor is not None and any(each is tensor for each in args)
        if tensor is not None and itself and func.namespace == "aten" and torch.is_grad_enabled():
            self._version = version_of(tensor)
