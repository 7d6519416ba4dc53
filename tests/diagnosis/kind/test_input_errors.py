"""What is wrong with the gradient of a call's input is told from the numbers of that call; near misses are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.input_errors import InputGradient, input_mistake
from torch_gradcheck.reporting.facts import DiagnosisKind

DRAW = np.random.default_rng(4)
X, Y, UP, G = (DRAW.normal(size=(5, 6)) for _ in range(4))
ROW, COLUMN = DRAW.normal(size=(5, 1)), DRAW.normal(size=(1, 6))
BLOCK = DRAW.normal(size=(3, 5, 4))
NOISE = 1e-6 * DRAW.normal(size=(5, 6))


def gradient(on_trial: Floats, right: Floats = G, value: Floats = X) -> InputGradient:
    fitting = on_trial.shape == X.shape
    upstream, outputs = ({"the upstream gradient": UP}, {"the output": Y}) if fitting else ({}, {})
    return InputGradient(on_trial, right, value, upstream, outputs)


TOLD: dict[str, tuple[Floats, str, str]] = {
    "twice": (2 * G, "propagated", "is 2 × the right one"),
    "1.0001 times": (1.0001 * G, "propagated", "is 1.0001 × the right one"),
    "minus": (-G, "propagated", "is minus the right one"),
    "zero": (0 * G, "propagated", "is zero or None"),
    "reversed": (G[:, ::-1], "propagated", "with columns reversed"),
    "transposed": (G.T.reshape(5, 6), "propagated", "transposed"),
    "limited": (G.clip(-0.5, 0.5), "propagated", "limited in value"),
    "a factor for each row": (G * ROW, "propagated", "another factor in each slice along axis 1"),
    "plus upstream": (G + UP, "missing_term", "off by 1 · the upstream gradient in every entry"),
    "minus output": (G - 0.5 * Y, "missing_term", "off by -0.5 · the output"),
    "plus input": (G + 0.1 * X, "missing_term", "off by 0.1 · the input"),
    "plus 1": (G + 0.1, "missing_term", "off by 0.1 · 1 "),
    "plus input plus 1": (G + 0.1 * X - 0.2, "missing_term", "off by 0.1 · the input − 0.2 in every entry"),
    "mean left in": (G + ROW, "projection", "a multiple of 1 (its mean) along axis 1"),
    "mean over the batch left in": (G + COLUMN, "projection", "a multiple of 1 (its mean) along axis 0"),
    "along the input": (G + ROW * X, "projection", "a multiple of the input along axis 1"),
    "along the output": (G + ROW * Y, "projection", "a multiple of the output along axis 1"),
    "along the centred input": (
        G + ROW * (X - X.mean(1, keepdims=True)),
        "projection",
        "a multiple of the input less its mean along axis 1",
    ),
    "mean and input": (G + ROW + ROW[::-1] * X, "projection", "1 (its mean) and one of the input along axis 1"),
    "a row lost": (np.where(np.arange(5)[:, None] == 3, 0, G), "block", "row 3 of 5, where it is zero"),
    "a block twice": (G * (1 + (np.arange(5)[:, None] > 3) * (np.arange(6) > 3)), "block", "entries [4, 4], [4, 5]"),
}

NOT_TOLD: dict[str, Floats] = {
    "mean and noise": G + ROW + NOISE,
    "upstream and noise": G + UP + NOISE,
    "twice and noise": 2 * G + NOISE,
    "rows of two things": G + ROW * X * Y,
    "a factor for each row, and noise": G * ROW + NOISE,
    "three terms for each row": G + ROW + ROW[::-1] * X + ROW**2 * Y,
    "another gradient": UP * Y,
    "a factor for each row of another gradient": UP * ROW,
}


@pytest.mark.parametrize(("on_trial", "kind", "words"), TOLD.values(), ids=TOLD)
def test_kind_and_words(on_trial: Floats, kind: str, words: str) -> None:
    found = input_mistake(gradient(on_trial))
    assert found is not None
    assert found.kind == kind, found
    assert words in found.words
    np.testing.assert_allclose(found.error, on_trial - G, atol=1e-12)


@pytest.mark.parametrize("on_trial", NOT_TOLD.values(), ids=NOT_TOLD)
def test_near_misses_are_not_told(on_trial: Floats) -> None:
    assert input_mistake(gradient(on_trial)) is None


@pytest.mark.parametrize("on_trial", [G, G + 1e-15, G * np.nan], ids=["the same", "rounded", "NaN"])
def test_what_is_right_or_not_finite_has_no_mistake(on_trial: Floats) -> None:
    assert input_mistake(gradient(on_trial)) is None


MASK = np.where(DRAW.uniform(size=(5, 6)) < 0.5, 0.0, 1.0)


def test_what_is_masked_in_the_forward_only() -> None:
    found = input_mistake(replace(gradient(UP * Y, MASK * UP * Y), elementwise=True))
    assert found is not None
    assert (found.kind, "lacks the mask of its forward" in found.words) == ("unmasked", True)
    also_wrong_elsewhere = np.where(np.arange(6) == 2, 2, 1) * UP * Y
    elsewhere = input_mistake(gradient(also_wrong_elsewhere, MASK * UP * Y))
    assert elsewhere is None or elsewhere.kind is not DiagnosisKind.UNMASKED


def test_no_mask_is_told_where_none_is_known() -> None:
    found = input_mistake(gradient(UP * Y, MASK * UP * Y))
    assert found is not None
    assert found.kind == "unmasked"
    assert found.words.endswith(f"of the {np.sum(MASK == 0)} entries where it should be")


def test_what_is_zero_because_another_input_is() -> None:
    other = {"the input c": MASK * Y}
    found = input_mistake(replace(gradient(UP, MASK * UP * Y), elementwise=True, others=other))
    assert found is None or found.kind is not DiagnosisKind.UNMASKED
    lacking = input_mistake(replace(gradient(UP * Y, MASK * UP * Y), elementwise=True, others=other))
    assert lacking is not None
    assert lacking.words.endswith("as where a backward lacks the factor the input c, which is zero there")


def test_a_gate_of_which_the_right_gradient_is_zero_is_told_by_its_place() -> None:
    first_columns = np.where(np.arange(6) < 2, 0, 1)
    found = input_mistake(gradient(UP * Y, first_columns * UP * Y))
    assert found is not None
    assert (found.kind, found.words) == ("unmasked", "is right except in columns 0-1 of 6, where it should be zero")


OTHER_MASK = np.roll(MASK, 1)


def test_another_mask_than_the_forward_has() -> None:
    found = input_mistake(gradient(2 * OTHER_MASK * UP, 2 * MASK * UP))
    assert found is not None
    assert (found.kind, "another mask than the forward" in found.words) == ("unmasked", True)
    counts = f"is zero at {np.sum(MASK * (1 - OTHER_MASK)):.0f} entries where it should not be and not zero at "
    assert found.words.startswith(f"{counts}{np.sum(OTHER_MASK * (1 - MASK)):.0f} where it should be")


@pytest.mark.parametrize("scale", [X, 3.0, UP], ids=["the input", "another factor", "upstream"])
def test_two_masks_of_two_things_are_not_told(scale: Floats | float) -> None:
    found = input_mistake(gradient(scale * OTHER_MASK * UP, 2 * MASK * UP))
    assert found is None or "another mask" not in found.words


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        pytest.param(abs(X - Y) > 1, "where the input less the input target is -1.", id="far from the target"),
        pytest.param(Y > 0.3, "where the input target is 0.", id="by the target"),
        pytest.param(X > Y, "where the input less the input target is 0.", id="above the target"),
        pytest.param(np.sin(40 * X) > 0, "of 30 entries", id="neither"),
    ],
)
def test_where_a_slope_is_wrong_beside_another_input(wrong: Floats, where: str) -> None:
    pointwise = replace(gradient(UP * np.where(wrong, X - Y, 1), UP), elementwise=True, others={"the input target": Y})
    found = input_mistake(pointwise)
    assert found is not None
    assert (found.kind, where in found.words) == ("slope", True), found.words


MAP = DRAW.normal(size=(4, 6, 5))
HALVES = DRAW.normal(size=(4, 2, 1))


@pytest.mark.parametrize(
    ("spoiled", "kind", "words"),
    [
        pytest.param(
            MAP + HALVES.repeat(3, axis=1),
            "projection",
            "1 (its mean) along axes 1, 2 in each of 2 groups of axis 1,",
            id="the mean of groups of channels",
        ),
        pytest.param(
            MAP * (1 + HALVES.repeat(3, axis=1)),
            "propagated",
            "another factor in each slice along axes 1, 2 in each of 2 groups of axis 1,",
            id="a factor for each group",
        ),
        pytest.param(MAP + HALVES[:, :1], "projection", "1 (its mean) along axes 1, 2,", id="one group"),
        pytest.param(MAP + MAP[:, :, :1], "projection", "1 (its mean) along axis 2,", id="a mean for each channel"),
    ],
)
def test_slices_are_as_large_as_they_can_be(spoiled: Floats, kind: str, words: str) -> None:
    found = input_mistake(gradient(spoiled, MAP, np.roll(MAP, 1)))
    assert found is not None
    assert (found.kind, words in found.words) == (kind, True), found.words


@pytest.mark.parametrize(
    ("slope", "where"),
    [
        pytest.param(lambda x: 1 - np.tanh(x), "everywhere", id="everywhere"),
        pytest.param(lambda x: np.where(x < 0, 0.1, 1 - np.tanh(x) ** 2), "or less", id="on the left"),
        pytest.param(lambda x: np.where(x > 0, 0.1, 1 - np.tanh(x) ** 2), "or more", id="on the right"),
        pytest.param(
            lambda x: np.where(abs(x) < 0.5, 0.1, 1 - np.tanh(x) ** 2),
            "where the input is from -0.",
            id="in the middle",
        ),
        pytest.param(lambda x: np.where(abs(x) > 0.5, 0.1, 1 - np.tanh(x) ** 2), "or less, or 0.", id="outside"),
        pytest.param(lambda x: np.where(np.sin(40 * x) > 0, 0.1, 1 - np.tanh(x) ** 2), "of 30 entries", id="anywhere"),
    ],
)
def test_where_a_slope_is_wrong(slope: Callable[[Floats], Floats], where: str) -> None:
    pointwise = replace(gradient(UP * slope(X), UP * (1 - np.tanh(X) ** 2)), elementwise=True)
    found = input_mistake(pointwise)
    assert found is not None
    assert found.kind == "slope", found
    assert where in found.words
    mixing = input_mistake(replace(pointwise, elementwise=False))
    assert mixing is None or mixing.kind is not DiagnosisKind.SLOPE


def test_axes_of_activations_are_no_channels() -> None:
    lost = np.where(np.arange(5)[:, None] == 1, 0, BLOCK)
    found = input_mistake(gradient(lost, BLOCK, BLOCK[::-1]))
    assert found is not None
    assert (found.kind, "index 1 of 5 along axis 1" in found.words) == ("block", True)


def test_few_entries_prove_no_term_and_no_factor() -> None:
    right = G[:1, :3]
    assert input_mistake(gradient(right + 0.1, right, X[:1, :3])) is None
    assert input_mistake(gradient(right * 2, right, X[:1, :3])) is None


@pytest.mark.parametrize(("rows", "columns"), [(1, 6), (5, 2)], ids=["one short row", "rows of two"])
def test_few_entries_prove_no_projection(rows: int, columns: int) -> None:
    right = G[:rows, :columns]
    found = input_mistake(gradient(right + ROW[:rows], right, X[:rows, :columns]))
    assert found is None or found.kind is not DiagnosisKind.PROJECTION


def test_a_product_of_vectors_has_a_factor_for_each_row_whatever_is_wrong() -> None:
    assert input_mistake(gradient(ROW * Y[:1], ROW * X[:1])) is None


def test_entries_that_are_zero_anyway_prove_nothing() -> None:
    kept = np.isin(np.arange(6), (1, 4))  # one entry in each of two groups
    right, output = kept * G, {"the output": kept * X}
    assert input_mistake(InputGradient(right + kept * UP**2, right, Y, outputs=output)) is None
    assert input_mistake(InputGradient(right + kept * UP**2, right, kept * Y)) is None
    several = np.isin(np.arange(6), (1, 2, 4))
    found = input_mistake(InputGradient(several * (G + ROW * X), several * G, Y, outputs={"the output": several * X}))
    assert found is not None
    assert (found.kind, "a multiple of the output along axis 1," in found.words) == ("projection", True)


@pytest.mark.parametrize(("added", "kind"), [("row", "projection"), ("noise", None)])
def test_of_many_slices_a_few_are_tried_first(added: str, kind: str | None) -> None:
    draw = np.random.default_rng(0)
    right, row, noise = draw.normal(size=(300, 200)), draw.normal(size=(300, 1)), draw.normal(size=(300, 200))
    row[:20] = 0
    found = input_mistake(InputGradient(right + (row if added == "row" else noise), right, noise[::-1]))
    assert (found and found.kind) == kind


def test_a_factor_for_each_column_is_told_rather_than_a_wrong_slope() -> None:
    found = input_mistake(replace(gradient(UP, UP * COLUMN), elementwise=True))
    assert found is not None
    assert found.kind is DiagnosisKind.PROPAGATED
    assert "another factor in each slice along axis 0" in found.words
