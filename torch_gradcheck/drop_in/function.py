"""The function on trial, lent: run with a graph for its backward, and again with its inputs moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.borrowing.loan import Borrowed, Loan
from torch_gradcheck.drop_in.failure import GradcheckFailedError
from torch_gradcheck.drop_in.inputs import Input, on_trial
from torch_gradcheck.drop_in.rows import vector
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.function_loss import FunctionModule
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.precision.dtypes import epsilon


class LentFunction:
    """A function with its arguments, while all that it reaches is lent.

    Attributes:
        inputs: the arguments on trial.
        differentiable: the positions among the outputs of those that require a gradient; known after `start`.
        outputs: all outputs as they are before any input is moved, without a graph; known after `start`.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        arguments: Sequence[Any],
        inputs: Sequence[Input],
        borrowed: Borrowed,
        dtype: torch.dtype | None,
    ) -> None:
        self._func, self._arguments, self.inputs = func, arguments, inputs
        self._borrowed, self._as_it_is = borrowed, dtype is None
        self._objective = Objective(_model(func), self._first_run, borrowed, dtype or torch.float32)
        self.differentiable: list[int] = []
        self.outputs: list[Tensor] = []

    def start(self) -> None:
        """Runs the function for the first time, to learn its outputs and what a run changes."""
        if self._as_it_is:
            with self.run():
                self._first_run()
                self._borrowed.learn_from_evaluation()
        else:
            self._objective.record_evaluation()

    def run(self) -> AbstractContextManager[None]:
        """The regime of one run: the same random state each time, all that it changes put back."""
        return self._objective.evaluation_as_it_is() if self._as_it_is else self._objective.evaluation()

    @property
    def epsilon(self) -> float:
        """Machine epsilon of the precision of the function, the coarsest of its inputs."""
        return max([epsilon(each.memory.dtype) for each in self.inputs])

    def _first_run(self) -> Tensor:
        results = self.called([each.leaf() for each in self.inputs])
        self.differentiable = [k for k, output in enumerate(results) if output.requires_grad]
        self.outputs = [output.detach().clone() for output in results]
        return torch.zeros((), dtype=torch.float64)

    def called(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The outputs with these tensors in place of the inputs on trial; only inside of `run`."""
        places = {id(each.given): tensor for each, tensor in zip(self.inputs, tensors, strict=True)}
        with torch.enable_grad():
            result = self._func(*[places.get(id(argument), argument) for argument in self._arguments])
        outputs = [output for _, output in tensors_in(result)]
        _check_outputs(outputs)
        return outputs

    def place_of(self, position: int) -> int:
        """The position among all arguments of the input at this position among those on trial."""
        return next(k for k, each in enumerate(self._arguments) if each is self.inputs[position].given)

    def chosen(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Those of the outputs that are differentiable."""
        return [outputs[k] for k in self.differentiable]

    def values(self, everything: bool = False) -> Floats:
        """All real numbers in the differentiable outputs, or in all, at what the inputs are moved to.

        NaN where the function is not defined there, and raises.
        """
        try:
            return self._values(everything)
        except Exception as error:
            if not self._objective.domain.excludes(error, lambda: self._values(everything)):
                raise
            return np.full_like(vector(self.outputs if everything else self.chosen(self.outputs)), np.nan)

    def _values(self, everything: bool) -> Floats:
        with self.run():
            outputs = self.called([each.moved() for each in self.inputs])
            self._check_unchanged(outputs)
            return vector(outputs if everything else self.chosen(outputs))

    def _check_unchanged(self, outputs: Sequence[Tensor]) -> None:
        """Raises where the outputs are other ones than before the inputs moved."""
        for what in ("shape", "dtype"):
            found = [getattr(output, what) for output in outputs]
            expected = [getattr(output, what) for output in self.outputs]
            if found != expected:
                raise GradcheckFailedError(
                    f"Expected `func` to return outputs with the same {what} when inputs are perturbed, "
                    f"but got: {what}s {expected} and {found}: there is no derivative to compare with."
                )


def lent_function(
    func: Callable[..., Any], arguments: Sequence[Any], *, masked: bool, dtype: torch.dtype | None, seed: int = 0
) -> Loan[LentFunction]:
    """Lends a function and its arguments for `with lent_function(...) as function:`.

    Args:
        func: the function.
        arguments: its positional arguments, the caller's own.
        masked: see `SparseInput`.
        dtype: the precision of the check; None: all as it is.
        seed: of the random state that every run starts from.
    """

    def lent(borrowed: Borrowed) -> LentFunction:
        return LentFunction(func, arguments, on_trial(arguments, masked, dtype), borrowed, dtype)

    return Loan(_model(func), [func, *arguments], "keep", dtype, seed, lent)


def _model(func: Callable[..., Any]) -> nn.Module:
    return func if isinstance(func, nn.Module) else FunctionModule()


def _check_outputs(outputs: Sequence[Tensor]) -> None:
    for output in outputs:
        if output.layout is not torch.strided:
            kind = "MKLDNN" if output.is_mkldnn else "Sparse"
            raise InvalidRequestError(
                f"{kind} output is not supported at gradcheck yet. "
                "Please call to_dense(masked_grad=...) on the output of fn for gradcheck."
            )
