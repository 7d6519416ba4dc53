"""What a check computes of a reference alone, taken once for all candidates that are tried beside it.

A table has four or five kernels for each reference, on the same inputs. The check of the reference's own gradient, its
run in float64 and its runs with rounding as noise are the same beside all of them, under the same gradients of outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from torch_gradcheck.against_reference import check, pair
from torch_gradcheck.against_reference.runs.sides import Candidate


class SharedReferences:
    """Known results of references; made once for all tests that share them."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}

    @contextmanager
    def of(self, inputs: Hashable) -> Iterator[None]:
        """A block in which checks take from here what is known of a reference on these inputs.

        Args:
            inputs: what the reference and its inputs are told by.
        """
        with pytest.MonkeyPatch.context() as patch:
            for module, name in ((check, "reference_of"), (pair, "rounded_runs")):
                patch.setattr(module, name, self._once(inputs, getattr(module, name)))
            yield

    def _once(self, inputs: Hashable, function: Callable[..., Any]) -> Callable[..., Any]:
        def once(computations: Any, candidate: Candidate, *others: Any) -> Any:
            several = computations if isinstance(computations, list) else [computations]
            asked = [(each.only, tuple(each.upstream.given)) for each in several]
            key = inputs, function.__name__, tuple(asked), _given_by(candidate)
            if key not in self._known:
                self._known[key] = function(computations, candidate, *others)
            return self._known[key]

        return once


def _given_by(candidate: Candidate) -> Hashable:
    """What a reference depends on of a candidate: names, what is on trial, and where its outputs have a gradient."""
    outputs = candidate.runs[0].outputs.items()
    forms = tuple((name, each.dtype, torch.isinf(each).numpy().tobytes()) for name, each in outputs)
    return tuple(entry.name for entry in candidate.theta), tuple(candidate.theta.checked), forms
