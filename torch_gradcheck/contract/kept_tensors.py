"""Tensors that a function is lent and has to leave as they are, and the line of the user's that writes to one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from torch_gradcheck.contract.comparison import difference, same_bits
from torch_gradcheck.torch_internals.code_lines import CodeLine, calling_line
from torch_gradcheck.torch_internals.dispatch import DispatchMode


@dataclass
class KeptTensors:
    """Tensors beside what they held: a write past the version counter, as by `.data` or numpy, is seen as well."""

    _kept: list[tuple[str, torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """Takes down what the tensor holds now."""
        self._kept.append((name, tensor, tensor.detach().clone()))

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

    Attributes:
        line: of the user's, that asked for the operation; None where there is none, or nothing was written by one.
        by_kernel: the operation is one of torch's own and gets the tensor itself while autograd is on, which records
            nothing of that write by torch's own choice: `batch_norm` writes to its running statistics like that.
    """

    def __init__(self, kept: KeptTensors, name: str) -> None:
        super().__init__()
        self._kept, self._name = kept, name
        self._found = False
        self.line: CodeLine | None = None
        self.by_kernel = False

    @property
    def where(self) -> str:
        """The line as " (FILE:LINE)"; "" where there is none."""
        return "" if self.line is None else f" ({self.line})"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._found = self._found or self._is_written  # by numpy, say, since the last operation
        result = func(*args, **(kwargs or {}))
        if not self._found and self._is_written:
            self._found, self.line = True, calling_line()
            self.by_kernel = func.namespace == "aten" and torch.is_grad_enabled() and self._is_among(args, kwargs or {})
        return result

    def _is_among(self, args: Any, kwargs: Any) -> bool:
        return any(each is self._kept.tensor(self._name) for each in [*args, *kwargs.values()])

    @property
    def _is_written(self) -> bool:
        return self._name in self._kept.written()
