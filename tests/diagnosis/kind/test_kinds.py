"""Each kind is told from numbers alone, noise and all; what is near to a kind is not taken for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.diagnose import diagnose, diagnose_all
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.factors import count_meanings
from torch_gradcheck.diagnosis.kind.terms import slicewise
from torch_gradcheck.precision.lower_precisions import Rounding

BAR = 1e-10
DRAW = np.random.default_rng(3)
G, THETA = DRAW.normal(size=(4, 6)), DRAW.normal(size=(4, 6))
CONV = DRAW.normal(size=(2, 3, 3, 3))
ROWS = count_meanings(32, "rows of the batch")


PADDED = np.where(np.arange(4)[:, None] == 2, 0, G)


def evidence(analytic: Floats, numeric: Floats = G, theta: Floats = THETA) -> Evidence:
    """The right gradient comes with noise, as differences do."""
    noise = np.random.default_rng(5).normal(size=np.shape(numeric)) * BAR / 6
    return Evidence.of(np.asarray(analytic), numeric + noise, theta, BAR)


def entry(index: tuple[int, ...], value: float) -> Floats:
    spoiled = G.copy()
    spoiled[index] = value
    return spoiled


SPOILED: dict[str, tuple[Floats, str, str]] = {
    "twice": (2 * G, "scaled", "dθ = 2 × the right gradient in every entry"),
    "half": (G / 2, "scaled", "a factor 2 forgotten"),
    "batch": (32 * G, "scaled", "the number of rows of the batch (a sum where a mean was meant)"),
    "one over batch": (G / 32, "scaled", "1 / the number of rows of the batch"),
    "root": (G * 32**0.5, "scaled", "√32"),
    "loss scale": (2.0**16 * G, "scaled", "2^16, a loss scale that was not taken out"),
    "0.01 % off": (1.0001 * G, "scaled", "dθ = 1.0001 ×"),
    "sign": (-G, "sign_flipped", "a sign is flipped"),
    "zero": (0 * G, "missing", "zero everywhere, though J depends on it"),
    "no decay": (G - 0.1 * THETA, "weight_decay", "off by -0.1 · θ"),
    "decay": (G + 1e-4 * THETA, "weight_decay", "the gradient has weight decay that the loss lacks"),
    "transposed": (G.T.reshape(4, 6), "transposed", "the right gradient transposed"),
    "rolled": (np.roll(G, 1, 1), "permuted", "with its columns rolled by 1"),
    "rows in another order": (G[[2, 0, 1, 3]], "permuted", "rows in the order [2, 0, 1, 3]"),
    "reversed": (G[:, ::-1], "permuted", "with columns reversed"),
    "shuffled": (np.random.default_rng(8).permutation(G.ravel()).reshape(4, 6), "permuted", "in another order"),
    "clamped": (G.clip(-0.5, 0.5), "clipped", "stand at -0.5 and 0.5"),
    "negative ones cut": (G.clip(0, None), "clipped", "stand at 0"),
    "right in one row only": (np.where(np.arange(4)[:, None] == 1, G, 2 * G), "partial", "rows 0, 2-3 of 4"),
    "right in one column only": (np.where(np.arange(6) == 1, G, THETA), "unknown", "no simple relation"),
    "norm": (G * (0.1 / np.linalg.norm(G)), "clipped", "was limited to 0.1"),
    "torch's clip_grad_norm_": (G / (np.linalg.norm(G) + 1e-6), "clipped", "was limited to 1"),
    "float16": (G.astype(np.float16).astype(float), "low_precision", "every entry is a float16 number"),
    "row zero": (np.where(np.arange(4)[:, None] == 2, 0, G), "partial", "except in row 2 of 4, where it is zero"),
    "columns twice": (np.where(np.arange(6) > 3, 2 * G, G), "partial", "columns 4-5 of 6, where it is 2 × the right"),
    "a block": (
        np.where((np.arange(4) > 1)[:, None] & (np.arange(6) % 5 == 1), 0, G),
        "partial",
        "entries [2, 1], [3, 1], where it is zero",
    ),
    "a larger block": (
        np.where((np.arange(4) > 1)[:, None] & (np.abs(np.arange(6) - 2) < 2), 0, G),
        "partial",
        "except in rows 2-3 of 4, columns 1-3 of 6, where it is zero",
    ),
    "one entry": (entry((1, 2), 1.01 * G[1, 2]), "partial", "entry [1, 2]"),
    "a row that should be zero": (np.where(np.arange(4)[:, None] == 2, THETA, PADDED), "partial", "should be zero"),
    "nan": (entry((1, 2), np.nan), "partial", "entry [1, 2], where it is not finite"),
    "all nan": (np.nan * G, "unknown", "not finite in 24 of 24"),
    "mean for sum but in the decay": (3 * G - 0.2 * THETA, "unknown", "dθ = 3 × the right gradient − 0.2 · θ"),
    "noise": (DRAW.normal(size=G.shape), "unknown", "no simple relation"),
    "centred": (G - G.mean(), "missing_term", "· 1 in every entry"),
    "no L1 penalty": (G - 0.01 * np.sign(THETA), "missing_term", "off by -0.01 · sign(θ) in every entry"),
    "rows centred": (G - G.mean(1, keepdims=True), "projection", "a multiple of 1 (its mean) along axis 1"),
    "columns centred": (G - G.mean(0), "projection", "a multiple of 1 (its mean) along axis 0"),
    "along θ": (G + THETA * np.arange(1, 5)[:, None], "projection", "a multiple of θ along axis 1"),
    "along θ, and noise": (G + THETA * np.arange(1, 5)[:, None] + 1e-3 * DRAW.normal(size=G.shape), "unknown", "no"),
    "rows centred, and noise": (G + THETA[:, :1] + 1e-2 * DRAW.normal(size=G.shape), "unknown", "no simple relation"),
    "off by 0.01 % at random": (G * (1 + 1e-4 * DRAW.normal(size=G.shape)), "unknown", "cosine"),
    "scaled but one": (np.where(THETA.max() == THETA, G, 2 * G), "unknown", "cosine"),
}


@pytest.mark.parametrize(("analytic", "kind", "words"), SPOILED.values(), ids=SPOILED)
def test_kind_and_evidence(analytic: Floats, kind: str, words: str) -> None:
    found = diagnose(evidence(analytic, PADDED if words == "should be zero" else G), ROWS)
    assert found is not None
    assert found.kind == kind, found
    assert words in found.message


@pytest.mark.parametrize("factor", [2.0, 1.0001, -3.0, 1 / 32, 65536.0], ids=str)
def test_the_factor_is_measured(factor: float) -> None:
    found = diagnose(evidence(factor * G))
    assert found is not None
    assert found.factor == pytest.approx(factor, rel=1e-8)


def test_nothing_wrong_is_no_diagnosis() -> None:
    assert diagnose(evidence(G)) is None


def test_axes_of_a_convolution_are_named() -> None:
    swapped = diagnose(evidence(np.swapaxes(CONV, 2, 3), CONV, CONV))
    flipped = diagnose(evidence(CONV[:, :, ::-1, ::-1], CONV, CONV))
    channel = diagnose(evidence(np.where(np.arange(3)[:, None, None] == 1, 0, CONV), CONV, CONV))
    assert swapped is not None
    assert (swapped.kind, "axes 2 and 3" in swapped.message) == ("transposed", True)
    assert flipped is not None
    assert (flipped.kind, "reversed" in flipped.message) == ("permuted", True)
    assert channel is not None
    assert "input channel 1 of 3" in channel.message


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        pytest.param(lambda g: 1.37 * g, "unknown", id="any factor"),
        pytest.param(lambda g: 2 * g, "scaled", id="a factor that means something"),
        pytest.param(lambda g: 0 * g, "missing", id="zero"),
        pytest.param(lambda g: -g, "sign_flipped", id="sign"),
    ],
)
def test_one_number_proves_little(change: Callable[[Floats], Floats], kind: str) -> None:
    one = np.array([0.7])
    found = diagnose(Evidence.of(change(one), one, one))
    assert found is not None
    assert found.kind == kind


def test_a_number_alone_is_compared_without_an_angle() -> None:
    found = diagnose(Evidence.of(np.array([-22.63]), np.array([1.0]), np.array([1.0])))
    assert found is not None
    assert found.message == "dθ is -22.63 times the right gradient, a factor of no known meaning"


def test_two_numbers_that_cancel_prove_no_factor() -> None:
    right, factor = np.array([0.3, -0.3]), -0.612
    alone = diagnose(Evidence.of(factor * right, right, np.ones(2)))
    assert alone is not None
    assert alone.kind == "unknown"
    both = {"bias": Evidence.of(factor * right, right, np.ones(2)), "weight": evidence(factor * G)}
    assert {found.kind.value for found in diagnose_all(both).values()} == {"scaled"}


def test_a_few_wrong_entries_are_named_where_the_rest_of_their_row_passes() -> None:
    found = diagnose(Evidence.of(entry((1, 2), 1.5 * G[1, 2]) * (1 + 1e-7), G, THETA, BAR))
    assert found is not None
    assert found.message.startswith("dθ is right except in entry [1, 2]")


def test_one_number_is_believed_in_company() -> None:
    one = np.array([0.7])
    found = diagnose_all({"scale": Evidence.of(1.37 * one, one, one), "weight": evidence(1.37 * G)})
    assert [found[name].kind for name in ("scale", "weight")] == ["scaled", "scaled"]


def test_decay_of_constant_weights_is_believed_in_company_only() -> None:
    ones = np.ones(6)
    alone = {"norm.weight": Evidence.of(G[0] + 0.1, G[0], ones)}
    company = {**alone, "weight": evidence(G + 0.1 * THETA)}
    assert diagnose_all(alone)["norm.weight"].kind == "unknown"
    assert diagnose_all(company)["norm.weight"].kind == "weight_decay"


def test_a_norm_clipped_over_all_parameters() -> None:
    norm = np.sqrt(np.sum(G**2) + np.sum(CONV**2))
    spoiled = {"a": evidence(G * 0.5 / norm), "b": evidence(CONV * 0.5 / norm, CONV, CONV)}
    found = diagnose_all(spoiled)
    assert {diagnosis.kind for diagnosis in found.values()} == {"clipped"}
    assert "over all of θ" in found["a"].message


def test_a_rounding_seen_on_the_way_explains_what_its_size_explains() -> None:
    rounding = Rounding("float16", 2.0**-10)
    close, far = G * (1 + 1e-4 * THETA), G * (1 + 0.1 * THETA)
    found = diagnose_all({"close": evidence(close), "far": evidence(far)}, rounding=rounding)
    assert (found["close"].kind, found["far"].kind) == ("low_precision", "unknown")


def test_zeros_that_are_negative_by_chance_are_no_limit() -> None:
    right = np.array([0.5, -0.3, 0.7, -0.1])
    found = diagnose(Evidence.of(right.clip(0, None), right, right))
    assert found is not None
    assert (found.kind, "where it is zero" in found.message) == ("partial", True)


def test_entries_that_prove_nothing_do_not_hide_a_factor() -> None:
    dead = np.where(np.arange(4)[:, None] < 2, 0, G)
    found = diagnose(Evidence.of(2 * dead, dead, THETA, BAR))
    assert found is not None
    assert found.kind == "scaled"


COARSE = np.where((np.arange(24) % 7 == 0).reshape(4, 6), 1e-3, BAR)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        pytest.param(lambda g: 2 * g, "scaled", id="factor"),
        pytest.param(lambda g: g - 0.1 * THETA, "weight_decay", id="decay"),
        pytest.param(lambda g: g[[2, 0, 1, 3]], "permuted", id="rows in another order"),
        pytest.param(lambda g: g.T.reshape(4, 6), "transposed", id="transposed"),
    ],
)
def test_a_few_coarse_entries_do_not_spoil_a_fit(change: Callable[[Floats], Floats], kind: str) -> None:
    seen = G + COARSE * np.random.default_rng(5).uniform(-1, 1, size=G.shape)
    found = diagnose(Evidence.of(change(G), seen, THETA, COARSE))
    assert found is not None
    assert found.kind == kind, found


def test_noise_as_large_as_the_gradient_proves_no_factor() -> None:
    noisy = Evidence.of(2 * G, G + 0.3 * THETA, THETA, error_bar=0.2)
    found = diagnose(noisy)
    assert found is not None
    assert found.kind == "unknown"


@pytest.mark.parametrize("rounded", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("factor", [2.0, 1 / 3, 1.5, -1.0], ids=str)
def test_a_factor_between_rounded_numbers(rounded: str, factor: float) -> None:
    on_trial = torch.from_numpy(factor * G).to(getattr(torch, rounded)).double().numpy()
    found = diagnose(evidence(on_trial), count_meanings(3, "rows of the batch"))
    assert found is not None
    assert found.kind == ("sign_flipped" if factor == -1 else "scaled"), found
    assert found.factor == pytest.approx(factor, rel=3e-3)
    assert ("a mean where a sum was meant" in found.message) is (factor == 1 / 3)


def test_rounding_leaves_no_factor_in_what_it_does_not_explain() -> None:
    off = torch.from_numpy(2 * G * (1 + 0.03 * THETA)).bfloat16().double().numpy()
    close = torch.from_numpy(1.004 * G).bfloat16().double().numpy()
    assert [each and each.kind for each in (diagnose(evidence(off)), diagnose(evidence(close)))] == [
        "unknown",
        "low_precision",
    ]


def test_a_gradient_of_what_the_loss_does_not_depend_on() -> None:
    noise = 1e-12 * THETA
    found = diagnose(Evidence.of(G, noise, THETA, 1e-11))
    assert found is not None
    assert (found.kind, "where it should be zero" in found.message) == ("spurious", True)
    assert "× the right one" not in found.message
    drowned = diagnose(Evidence.of(G, 0.5 * THETA, THETA, 0.2))
    assert drowned is not None
    assert drowned.kind == "unknown"


@pytest.mark.parametrize(
    ("right", "factor"),
    [
        pytest.param(np.full(4, 6.0), 1 / 3, id="equal entries"),
        pytest.param(np.array([3.0, 4.0, 12.0, 84.0]), 0.2, id="a round norm before"),
        pytest.param(G[0] / np.linalg.norm(G[0]) * 0.777777, 0.5 / 0.777777 * (1 + 1e-7), id="not quite round after"),
    ],
)
def test_a_round_norm_by_coincidence_is_no_clipping(right: Floats, factor: float) -> None:
    found = diagnose(Evidence.of(factor * right, right, np.ones(4)))
    assert found is not None
    assert found.kind == "scaled", found


@pytest.mark.parametrize("size", [0.0, 1e-200, 1e-320], ids=str)
def test_a_norm_of_zero_is_no_limit(size: float) -> None:
    spoiled = {name: Evidence.of(size * right, right, right) for name, right in (("a", G), ("b", CONV))}
    assert all(found.kind in ("missing", "scaled", "unknown") for found in diagnose_all(spoiled).values())


def test_slices_where_they_are_is_no_order() -> None:
    barely_wrong = np.where(np.arange(24).reshape(4, 6) % 5 == 0, 2e-3, 0.0)
    found = diagnose(Evidence.of(G + barely_wrong, G, THETA, 1e-3))
    assert found is not None
    assert found.kind != "permuted", found


def test_a_factor_for_each_row() -> None:
    factors = np.array([[0.5], [2.0], [3.0], [-1.0]])
    found = slicewise(evidence(factors * G))
    assert found is not None
    assert (found.kind, "from -1 to 3" in found.message) == ("slicewise", True)
    assert slicewise(evidence(factors * G + 1e-3 * THETA)) is None


def test_a_product_of_vectors_has_a_factor_for_each_row_whatever_is_wrong() -> None:
    row, column, other = G[0], THETA[:, :1], G[:, :1]
    assert slicewise(evidence(other * row, column * row)) is None
