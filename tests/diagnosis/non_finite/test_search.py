"""NaN and infinite gradients: the operation that makes them is named, its line, and how."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_gradcheck import NonFiniteLossError, Report, Status, check_closure, check_module
from torch_gradcheck.diagnosis.non_finite.reasons import SINGULARITIES, operation_name, reason_of
from torch_gradcheck.torch_internals.autograd import nodes_from
from torch_gradcheck.torch_internals.dispatch import function_modes_in_force

HERE = "tests/diagnosis/non_finite/test_search.py"
X = torch.linspace(-1, 1, 15).view(5, 3)


@pytest.fixture(autouse=True)
def below_the_root(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(request.config.rootpath)


def line_of(function: Callable[..., Any], word: str) -> str:
    """The place of the line of a function that holds a word, read from the source."""
    lines, start = inspect.getsourcelines(function)
    return f"{HERE}:{start + next(k for k, line in enumerate(lines) if word in line)}"


class Middle(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network(function: Callable[[Tensor], Tensor]) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), Middle(function))


def checked(function: Callable[[Tensor], Tensor], **options: Any) -> Report:
    return check_module(network(function), total, X, **options)


def total(y: Tensor) -> Tensor:
    return y.square().sum()


# Behind the branch that is not taken ------------------------------------------------------------------------------


def behind_sqrt(y: Tensor) -> Tensor:
    zero = y.clamp(max=0) ** 2 * (y > 0)
    root = zero.sqrt()
    return torch.where(y > 9, root, y)


def behind_negative_sqrt(y: Tensor) -> Tensor:
    root = y.sqrt()
    return torch.where(y > 0, root, y)


def behind_log(y: Tensor) -> Tensor:
    low = torch.log(0 * y)
    return low.masked_fill(y < 9, 1.0) + y


def behind_power(y: Tensor) -> Tensor:
    power = (0 * y) ** 0.5
    return power * 0 + y


def behind_division(y: Tensor) -> Tensor:
    ratio = y / (0 * y)
    return torch.where(y > 9, ratio, y)


def behind_reciprocal(y: Tensor) -> Tensor:
    inverse = (0 * y).reciprocal()
    return torch.where(y > 9, inverse, y)


def behind_rsqrt(y: Tensor) -> Tensor:
    inverse = torch.rsqrt(0 * y)
    return torch.where(y > 9, inverse, y)


def behind_exp(y: Tensor) -> Tensor:
    large = torch.exp(y + 1000)
    return torch.where(y > 9, large, y)


def behind_acos(y: Tensor) -> Tensor:
    angle = torch.acos(0 * y + 1)
    return torch.where(y > 9, angle, y)


def behind_norm(y: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(0 * y, dim=1, keepdim=True)
    unit = 0 * y / norm
    return torch.where(y > 9, unit, y)


def behind_softmax(y: Tensor) -> Tensor:
    shares = torch.softmax(y + torch.full_like(y, -math.inf), dim=1)
    return torch.where(y > 9, shares, y)


def behind_mask_and_square(y: Tensor) -> Tensor:
    shares = torch.softmax(y + torch.full_like(y, -math.inf), dim=1)
    return torch.cat([shares.masked_fill(y < 9, 0.0), y])  # the loss takes squares: 0 arrives at the mask already


def behind_index(y: Tensor) -> Tensor:
    roots = torch.sqrt(0 * y)
    return torch.cat([roots[:0], y])


def behind_clamp(y: Tensor) -> Tensor:
    low = torch.log(0 * y)
    return low.clamp(min=-5) + y


BEHIND = [
    (behind_sqrt, "sqrt", "root =", "its input is 0", "the branch that where at {} did not take", "where("),
    (behind_negative_sqrt, "sqrt", "root =", "its input is negative", "the branch that where at {}", "where("),
    (behind_log, "log", "low =", "its input is 0", "what masked_fill at {} replaces", "masked_fill"),
    (behind_power, "pow", "power =", "its base is 0", "a multiplication by 0 at {}", "power * 0"),
    (behind_division, "div", "ratio =", "it divides by 0", "the branch that where at {}", "where("),
    (behind_reciprocal, "reciprocal", "inverse =", "its input is 0", "the branch that where at {}", "where("),
    (behind_rsqrt, "rsqrt", "inverse =", "its input is 0", "the branch that where at {}", "where("),
    (behind_exp, "exp", "large =", "it overflows to ∞", "the branch that where at {}", "where("),
    (behind_acos, "acos", "angle =", "its input is ±1", "the branch that where at {}", "where("),
    (
        behind_norm,
        "div",
        "unit =",
        "it divides 0 by 0 (the divisor is of linalg_vector_norm at",
        "the branch",
        "where(",
    ),
    (behind_softmax, "softmax", "shares =", "a row is −∞ throughout", "the branch that where at {}", "where("),
    (behind_mask_and_square, "softmax", "shares =", "a row is −∞", "what masked_fill at {} replaces", "masked_fill"),
    (behind_index, "sqrt", "roots =", "its input is 0", "what the slice at {} leaves out", "cat("),
    (behind_clamp, "log", "low =", "its input is 0", "the part where clamp at {} is constant", "low.clamp("),
]


@pytest.mark.parametrize(
    ("function", "name", "word", "how", "hidden", "mask"), BEHIND, ids=[case[0].__name__ for case in BEHIND]
)
def test_what_a_mask_hides_is_named_with_both_lines(
    function: Any, name: str, word: str, how: str, hidden: str, mask: str
) -> None:
    report = checked(function)
    assert not report.passed
    assert report.culprit == "1"
    note = report.notes[0]
    place = f"{name} at {line_of(function, word)}, in 1 (Middle): {how}"
    assert note.startswith(f"the first gradient that is not finite is made by {place}")
    assert f"the gradient that arrives there is 0, behind {hidden.format(line_of(function, mask))}" in note
    assert note.endswith(" = NaN")
    assert "not finite are the gradients of 0.weight" in str(report.notes)


def right_sqrt(y: Tensor) -> Tensor:
    return torch.where(y > 0, torch.where(y > 0, y, 1.0).sqrt(), y)


def right_log(y: Tensor) -> Tensor:
    return torch.log(torch.where(y > 0, y, 1.0)).masked_fill(y < 0, 1.0) + y


def right_division(y: Tensor) -> Tensor:
    return torch.where(y > 9, y / torch.ones_like(y), y)


def right_norm(y: Tensor) -> Tensor:
    return y + torch.linalg.vector_norm(0 * y, dim=1, keepdim=True)  # torch's own gradient of it is 0


def right_softmax(y: Tensor) -> Tensor:
    return torch.softmax(y.masked_fill(torch.eye(5, 4).bool(), -math.inf), dim=1)


@pytest.mark.parametrize(
    "function", [right_sqrt, right_log, right_division, right_norm, right_softmax], ids=lambda f: str(f.__name__)
)
def test_the_same_with_a_harmless_input_passes(function: Any) -> None:
    report = checked(function)
    assert report.passed
    assert report.culprit is None
    assert "not finite" not in str(report)


def test_the_advice_is_given_where_the_result_is_not_used() -> None:
    assert "such as sqrt(torch.where(x > 0, x, 1))" in checked(behind_sqrt).notes[1]
    assert "such as" not in str(checked(singular_sqrt).notes)


# Where the derivative is infinite ---------------------------------------------------------------------------------


def singular_sqrt(y: Tensor) -> Tensor:
    return y + torch.sqrt(0 * y)


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[0.0, 4.0], [1.0, 0.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.w**0.5 + x


def test_an_infinite_derivative_is_no_zero_times_infinity() -> None:
    note = checked(singular_sqrt).notes[0]
    assert "where its derivative 1/(2·√x) is not finite" in note
    assert "arrives there is 0" not in note


def test_entries_and_parameters_are_counted() -> None:
    """J is not differentiable there, and no gradient is right: the check does not pass."""

    class Even(Root):
        def forward(self, x: Tensor) -> Tensor:
            return self.w.abs() ** 0.5 + x

    report = check_module(Even(), total, torch.ones(2, 2))
    assert not report.passed
    assert report.culprit == ""
    assert "pow at" in report.notes[0]
    assert "its base is 0 in 2 of 4 entries, first at [0, 0], where its derivative 0.5·x^(0.5 − 1)" in report.notes[0]
    assert "not finite are the gradients of w (2 of 4 entries, first at [0, 0])" in report.notes


def test_entries_of_complex_parameters_are_counted_once() -> None:
    class Modulus(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Parameter(torch.tensor([1 + 1j, 0j, 2 - 1j]))

        def forward(self, x: Tensor) -> Tensor:
            return self.c.abs() ** 0.5 + x

    notes = check_module(Modulus(), total, torch.ones(3)).notes
    assert "not finite are the gradients of c (1 of 3 entries, first at [1])" in notes


# Functions, hooks, the loss ---------------------------------------------------------------------------------------


class Spoils(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = 2 * grad
        grad[1, 2] = math.nan
        return grad


def spoilt(grad: Tensor) -> Tensor:
    return grad / 0


def hooked(y: Tensor) -> Tensor:
    z = 2 * y
    if z.requires_grad:
        z.register_hook(spoilt)
    return z + 1


def loss_with_a_root(y: Tensor) -> Tensor:
    return y.square().sum() + (0 * y).sum().sqrt()


def test_a_function_that_returns_nan_is_named() -> None:
    report = checked(Spoils.apply)
    assert report.culprit == "1"
    backward = line_of(Spoils.backward, "def ")
    assert f"autograd.Function Spoils, in its backward at {backward}, in 1 (Middle): it returns NaN" in report.notes[0]
    assert "in 1 of 20 entries, first at [1, 2]" in report.notes[0]


def test_a_hook_that_returns_infinity_is_named() -> None:
    report = checked(hooked)
    assert report.culprit == "1"
    place = f"a hook on a tensor at {line_of(spoilt, 'def')}, in 1 (Middle)"
    assert f"made by {place}: it returns infinity for a finite gradient" in report.notes[0]


def test_a_hook_on_a_parameter_is_named() -> None:
    model = network(torch.tanh)
    model[0].weight.register_hook(spoilt)
    report = check_module(model, total, X)
    assert report.culprit == "0.weight"
    assert f"a hook on the parameter 0.weight at {line_of(spoilt, 'def')} changes" in report.notes[0]


def test_the_loss_function_is_named() -> None:
    report = check_module(network(torch.tanh), loss_with_a_root, X)
    assert report.culprit == "loss_fn"
    place = f"sqrt at {line_of(loss_with_a_root, 'sqrt')}, in the loss function or closure: its input is 0"
    assert place in report.notes[0]


def test_other_mistakes_beside_it_are_told_too() -> None:
    class Doubles(Spoils):
        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad

    torch.manual_seed(3)
    parts = nn.ModuleList([nn.Linear(3, 4), Middle(behind_sqrt), nn.Linear(3, 4), Middle(Doubles.apply)])
    report = check_closure(parts, lambda: total(parts[1](parts[0](X))) + total(parts[3](parts[2](X))))
    assert report.culprit == "1"
    assert "sqrt" in report.notes[0]
    assert any("autograd.Function Doubles gives a wrong gradient" in note for note in report.notes)


# Other ways to run a backward -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_inside_a_checkpoint(reentrant: bool) -> None:
    report = checked(lambda y: checkpoint(behind_sqrt, y, use_reentrant=reentrant))
    assert report.culprit == "1"
    assert f"made by sqrt at {line_of(behind_sqrt, 'root =')}" in report.notes[0]


def test_a_closure_that_runs_its_own_backward() -> None:
    model = network(behind_sqrt)

    def closure() -> Tensor:
        model.zero_grad()
        loss = total(model(X))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    report = check_closure(model, closure)
    assert report.culprit == "1"
    assert f"made by sqrt at {line_of(behind_sqrt, 'root =')}" in report.notes[0]


@pytest.mark.parametrize("method", ["exact", "projected"])
def test_by_either_method(method: str) -> None:
    report = checked(behind_sqrt, method=method)
    assert not report.passed
    assert f"made by sqrt at {line_of(behind_sqrt, 'root =')}" in report.notes[0]


def test_of_given_gradients_nothing_is_said_where_autograds_are_finite() -> None:
    model = network(torch.tanh)
    given = {name: torch.full(tuple(each.shape), math.nan) for name, each in model.named_parameters()}
    report = check_module(model, total, X, gradients=given)
    assert report["0.weight"].status is Status.MISMATCH
    assert "autograd's own gradient is right: the mistake is in the given one" in report.notes


def test_modules_of_torch_have_no_line_of_the_one_who_asks() -> None:
    """The line that calls the check is none of J."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4, eps=0.0))
    x = X.clone()
    x[2] = 0
    note = check_module(model, lambda y: y.nan_to_num().square().sum(), x).notes[0]
    assert "made by native_layer_norm, in 1 (LayerNorm): the variance is 0, with eps=0 in 1 of 5 entries" in note


def test_a_right_model_pays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_gradcheck.diagnosis.findings.find_non_finite", None)
    assert checked(right_sqrt).passed


def test_an_exception_of_the_recorded_run_leaves_the_verdict() -> None:
    class RefusesError(Exception):
        pass

    def under_a_mode(y: Tensor) -> Tensor:
        if function_modes_in_force():
            raise RefusesError
        return behind_sqrt(y)

    report = checked(under_a_mode)
    assert report["0.weight"].status is Status.MISMATCH


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_a_recorded_backward_raises_leaves_no_mode_behind(error: type[BaseException]) -> None:
    runs: list[int] = []

    class Interrupted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            if function_modes_in_force():  # the recorded one
                runs.append(1)
                raise error
            return math.nan * grad

    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            checked(Interrupted.apply)
    else:
        assert not checked(Interrupted.apply).passed
    assert runs
    assert function_modes_in_force() == 0


# J itself ---------------------------------------------------------------------------------------------------------


def log_of_zero(y: Tensor) -> Tensor:
    low = torch.log(0 * y)
    return low + y


def nothing_over_nothing(y: Tensor) -> Tensor:
    low = torch.log(0 * y).clamp(min=-5)
    ratio = (0 * y) / (0 * low)
    return ratio + low


@pytest.mark.parametrize(
    ("function", "made"),
    [(log_of_zero, "log at {} makes the first infinity"), (nothing_over_nothing, "div at {} makes the first NaN")],
    ids=["infinite", "nan"],
)
def test_what_makes_j_itself_not_finite_is_named(function: Any, made: str) -> None:
    word = "log(" if "log" in made else "ratio ="
    with pytest.raises(NonFiniteLossError) as caught:
        checked(function)
    assert made.format(line_of(function, word)) in str(caught.value)
    assert caught.value.module == "1"


# The table of operations ------------------------------------------------------------------------------------------

ZERO, ONE = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
HALF = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

SINGULAR: dict[str, list[tuple[Callable[[Tensor], Tensor], Tensor]]] = {
    "sqrt": [(torch.sqrt, ZERO), (torch.sqrt, -ONE)],
    "rsqrt": [(torch.rsqrt, ZERO)],
    "reciprocal": [(torch.reciprocal, ZERO)],
    "log": [(torch.log, ZERO)],
    "log2": [(torch.log2, ZERO)],
    "log10": [(torch.log10, ZERO)],
    "log1p": [(torch.log1p, -ONE)],
    "xlogy": [(lambda x: torch.xlogy(ONE, x), ZERO)],
    "special_entr": [(torch.special.entr, ZERO)],
    "pow": [(lambda x: x**0.5, ZERO), (lambda x: x**HALF, -ONE), (lambda x: x**0.5, -ONE)],
    "div": [(lambda x: x / x, ZERO), (lambda x: ONE / x, ZERO)],
    "asin": [(torch.asin, ONE)],
    "acos": [(torch.acos, -ONE)],
    "acosh": [(torch.acosh, ONE)],
    "atanh": [(torch.atanh, ONE)],
    "erfinv": [(torch.erfinv, ONE)],
    "logit": [(torch.logit, ZERO)],
    "hypot": [(lambda x: torch.hypot(x, x), ZERO)],
    "std": [(lambda x: x[:1].std(), ONE)],
    "var": [(lambda x: x[:1].var(), ONE)],
    "exp": [(torch.exp, 1e3 * ONE)],
    "exp2": [(torch.exp2, 1e4 * ONE)],
    "expm1": [(torch.expm1, 1e3 * ONE)],
    "softmax": [(lambda x: torch.softmax(x, 0), -math.inf * ONE)],
    "log_softmax": [(lambda x: torch.log_softmax(x, 0), -math.inf * ONE)],
    "native_layer_norm": [(lambda x: nn.functional.layer_norm(x, (2,), eps=0.0), ONE)],
    "linalg_svd": [(lambda x: torch.linalg.svd(torch.diag(x))[0], ONE)],
    "linalg_eigh": [(lambda x: torch.linalg.eigh(torch.diag(x))[1], ONE)],
}


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("name", SINGULARITIES)
def test_every_operation_of_the_table_is_recognised_where_its_gradient_is_not_finite(name: str) -> None:
    for function, at in SINGULAR[name]:
        x = at.clone().requires_grad_()
        y = function(x)
        node = next(node for node in nodes_from([y.grad_fn]) if operation_name(node) == name)
        reason = reason_of(node)
        assert reason is not None
        assert reason.what in {each.what for each in SINGULARITIES[name]}
        (gradient,) = torch.autograd.grad(
            y, x, torch.zeros_like(y) if name in HIDDEN else torch.randn(y.shape).double()
        )
        assert not torch.isfinite(gradient).all(), "the table says of a finite gradient that it is not"


HIDDEN = {"log_softmax"}


@pytest.mark.parametrize("name", ["sqrt", "log", "div", "pow", "exp", "acos"])
def test_nothing_is_recognised_where_all_is_finite(name: str) -> None:
    function, _ = SINGULAR[name][0]
    y = function(torch.full((2,), 0.5, dtype=torch.float64).requires_grad_())
    assert reason_of(y.grad_fn) is None
