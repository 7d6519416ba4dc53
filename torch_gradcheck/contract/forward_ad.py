"""`forward_ad`: where there is a forward-mode rule, the tangents that it gives agree with differences.

Σ ⟨v, tangent⟩ over the outputs, for a tangent of one argument, is the slope of J along that tangent.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
from torch.autograd import Function

from torch_gradcheck.contract.beside import Slopes, judged_beside
from torch_gradcheck.contract.functions import functions_of
from torch_gradcheck.contract.outcome import SPARSE, UNREPEATABLE, Raised, attempted, failed, not_applicable, passed
from torch_gradcheck.contract.problem_trial import ProblemTrial
from torch_gradcheck.contract.slopes import Precision, Slope, Verdict, judged
from torch_gradcheck.objective.function_outputs import inner, outputs_of
from torch_gradcheck.objective.perturbation import RandomDirection
from torch_gradcheck.precision.dtypes import epsilon, name_of
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.autograd import has_forward_rule, meets_constants, node_of, nodes_from
from torch_gradcheck.torch_internals.code_lines import at_line_of
from torch_gradcheck.torch_internals.custom_ops import custom_op_of, name_of_function

NAME = "forward_ad"

CONSTANTS = (
    "not tried: forward mode of torch's own operations with a constant (such as x * 2) would load torch's compiler, "
    "which takes seconds"
)


def forward_ad(trial: ProblemTrial) -> ContractEntry:
    """Tangents of all that is on trial at once, then of one tensor at a time: each beside differences."""
    functions = functions_of(trial)
    reason = _reason_not_to_try(trial, functions)
    if reason:
        return not_applicable(NAME, reason)
    _load_rules()
    tangents, names = _Tangents(trial), _names(trial)
    raised = _raising(functions, tangents, names)
    if raised is not None:
        return raised
    dtypes = attempted(tangents.of_other_dtypes) if functions else []
    if dtypes and not isinstance(dtypes, Raised):
        return failed(NAME, f"with tangents of all that is on trial, {listed(dtypes)}{_by(functions)}")
    slopes = judged_beside(trial, tangents.slopes, names)
    wrong = {name: slope for name, slope in slopes.items() if slope.verdict is Verdict.WRONG}
    if wrong and not functions and tangents.are_of_backward(wrong):
        return not_applicable(NAME, "torch's own rules give what the backward gives, which differences contradict")
    if wrong:
        return failed(NAME, _wrong(functions, wrong))
    unknown = [name for name, slope in slopes.items() if slope.verdict is Verdict.UNKNOWN]
    if unknown:
        return not_applicable(NAME, f"differences, noisy or not finite, tell nothing of {listed(unknown)}")
    return passed(NAME, "" if functions else "by the rules of torch's own operations")


def _reason_not_to_try(trial: ProblemTrial, functions: Sequence[type[Function]]) -> str:
    """Why there are no tangents to be judged; "" where there may be some."""
    if trial.call.patterns:
        return SPARSE
    without = [function for function in functions if custom_op_of(function) or not has_forward_rule(function)]
    if without:
        return f"no forward-mode rule: {listed([_without_rule(each) for each in without])}"
    if not trial.is_repeatable:
        return UNREPEATABLE
    if not any(trial.first.have_graphs):
        return "not tried: no output has a graph (detached, or computed past autograd)"
    return CONSTANTS if not functions and _meets_constants(trial) else ""


def _raising(functions: Sequence[type[Function]], tangents: _Tangents, names: Sequence[str]) -> ContractEntry | None:
    """The entry where forward mode raises, for all tangents or one alone; None where it does not."""
    together = attempted(lambda: tangents.of(names))
    if isinstance(together, Raised):
        return _raised(functions, together, "all that is on trial")
    for name in names if functions else ():
        alone = attempted(lambda: tangents.of([name]))  # noqa: B023  # called at once
        if isinstance(alone, Raised):
            return _raised(functions, alone, f"{name} alone")
    return None


def _meets_constants(trial: ProblemTrial) -> bool:
    with torch.enable_grad(), trial.regime():
        return meets_constants(nodes_from(map(node_of, trial.outputs(trial.arguments))))


def _load_rules() -> None:
    """Has torch load the rules that it writes in TorchScript, of which it warns.

    Later that would be taken for an error of the function's where warnings are errors.
    """
    with warnings.catch_warnings(), forward_mode.dual_level():
        warnings.simplefilter("ignore")
        forward_mode.make_dual(torch.zeros(()), torch.zeros(()))


def _without_rule(function: type[Function]) -> str:
    has = "has no jvp" if custom_op_of(function) is None else "is an operator of torch.library"
    return f"{name_of_function(function)} {has}"


def _raised(functions: Sequence[type[Function]], raised: Raised, of: str) -> ContractEntry:
    if functions and not isinstance(raised.error, NotImplementedError):
        return failed(NAME, f"with tangents of {of}, forward mode raises {raised}")
    return not_applicable(NAME, f"forward mode raises {raised}")


def _wrong(functions: Sequence[type[Function]], wrong: Slopes) -> str:
    name = max(wrong, key=lambda each: abs(wrong[each].numeric - wrong[each].predicted))
    return (
        f"with a random tangent of one tensor at a time, the tangents of the outputs{_by(functions)} are wrong for "
        f"{listed(list(wrong))}; for {name}, ⟨v, tangent⟩ is {wrong[name]}"
    )


def _by(functions: Sequence[type[Function]]) -> str:
    """The rules of the user's, as " by Square.jvp at FILE:LINE"; "" for none."""
    rules = [f"{name_of_function(function)}.jvp{at_line_of(function.jvp)}" for function in functions]
    return f" by {listed(rules)}" if rules else ""


@dataclass(frozen=True)
class _Tangents:
    """Σ ⟨v, tangent⟩ over the outputs.

    Attributes:
        trial: the function.
    """

    trial: ProblemTrial

    def of(self, names: Collection[str]) -> float:
        """For random tangents of the tensors with these names; the others have none."""
        tangents = self._tangents(self._directions(names))
        return self._along(tangents)

    def are_of_backward(self, slopes: Slopes) -> bool:
        """Whether these slopes are those of the gradients that the backward gives."""
        gradients = dict(zip(self.trial.all_names, self.trial.first.gradients, strict=True))
        pairs = [
            (direction.slope([gradients[name]]), slopes[name].predicted)
            for name, direction in self._directions(slopes).items()
        ]
        tolerance = self.trial.problem.request.tolerance
        return all(abs(one - other) <= tolerance * max(abs(one), abs(other)) for one, other in pairs)

    def of_other_dtypes(self) -> list[str]:
        """Words on the outputs whose tangent has another dtype; casts to a lower precision stay what they are."""
        with torch.enable_grad(), self.trial.problem.objective.evaluation_as_it_is(), forward_mode.dual_level():
            outputs = self._dual_outputs(self._tangents(self._directions(_names(self.trial))))
            tangents = [forward_mode.unpack_dual(y).tangent for _, y in outputs]
            pairs = [(name, y.dtype, t.dtype) for (name, y), t in zip(outputs, tangents, strict=True) if t is not None]
        return [
            f"the tangent of {name} has the dtype {name_of(found)}, should have {name_of(expected)}"
            for name, expected, found in pairs
            if found is not expected
        ]

    def slopes(self, names: Collection[str]) -> Slopes:
        """J along a direction through each of these, beside what forward mode says of it."""
        return {name: self._slope(name, direction) for name, direction in self._directions(names).items()}

    def _along(self, tangents: Mapping[str, torch.Tensor]) -> float:
        with torch.enable_grad(), self.trial.held_regime(), forward_mode.dual_level():
            outputs = [y for _, y in self._dual_outputs(tangents)]
            found = [forward_mode.unpack_dual(y).tangent for y in outputs]
            terms = zip(self.trial.cotangents(outputs), found, strict=True)
            return sum([float(inner(v, tangent).detach()) for v, tangent in terms if tangent is not None])

    def _dual_outputs(self, tangents: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
        """The differentiable outputs with their names, for these tangents; inside of a dual level."""
        given = [
            forward_mode.make_dual(tensor, tangents[name]) if name in tangents else tensor
            for name, tensor in self._named.items()
        ]
        named = zip(self.trial.first.names, _outputs(self.trial, given), strict=True)
        return [(name, y) for name, y in named if y.requires_grad]

    def _directions(self, names: Collection[str]) -> dict[str, RandomDirection]:
        seed, tensors = (
            self.trial.problem.request.seed,
            dict(zip(self.trial.all_names, self.trial.tensors, strict=True)),
        )
        return {name: RandomDirection([tensors[name]], seed) for name in tensors if name in names}

    def _slope(self, name: str, direction: RandomDirection) -> Slope:
        request = self.trial.problem.request

        def value(step: float) -> float:
            with direction.at(step):
                found = attempted(self._terms)
            return float("nan") if isinstance(found, Raised) else sum([float(term.sum()) for term in found])

        def predicted(step: float) -> float:
            with direction.at(step):
                return self._along(self._alone(name, direction))

        terms = self._terms()
        scale = sum([float(term.abs().sum()) for term in terms])
        precision = Precision(epsilon(request.dtype), request.tolerance, scale)
        return judged(value, predicted, precision)

    def _alone(self, name: str, direction: RandomDirection) -> dict[str, torch.Tensor]:
        """The tangent of one tensor and zeros for all others: for those that torch makes itself it imports sympy."""
        zeros = {each: torch.zeros_like(tensor) for each, tensor in self._named.items()}
        return zeros | self._tangents({name: direction})

    @property
    def _named(self) -> dict[str, torch.Tensor]:
        return dict(zip(self.trial.all_names, self.trial.tensors, strict=True))

    def _tangents(self, directions: Mapping[str, RandomDirection]) -> dict[str, torch.Tensor]:
        return {name: direction.tangent(0, like=self._named[name]) for name, direction in directions.items()}

    def _terms(self) -> list[torch.Tensor]:
        """The products that add up to J, as real numbers; NaN where J asks for other held values than at θ."""
        with torch.enable_grad(), self.trial.held_regime():
            outputs = [y for y in self.trial.outputs(self.trial.arguments) if y.requires_grad]
            products = [v.conj() * y for v, y in zip(self.trial.cotangents(outputs), outputs, strict=True)]
            strays = self.trial.problem.objective.strays
        return [each.detach().real * (float("nan") if strays else 1.0) for each in products]


def _names(trial: ProblemTrial) -> list[str]:
    """Of all that can be given a tangent: parameters only of a function that is a module, which runs on other ones."""
    return trial.all_names if trial.call.function is trial.problem.model else trial.names


def _outputs(trial: ProblemTrial, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What the function returns for these arguments and, of a module, with these in the places of its parameters."""
    call, count = trial.handing_on, len(trial.names)
    module: Any = call.function
    names = [parameter.name for parameter in trial.parameters]
    parameters = dict(zip(names, tensors[count:], strict=True))
    if not parameters or call.function is not trial.problem.model:
        return trial.outputs(tensors[:count])

    def called(*args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(module, parameters, args, kwargs)

    return [tensor for _, tensor in outputs_of(replace(call, function=called).called(tensors[:count]))]
