"""Reports made by hand, one for each thing that a rendering must get right, and a strategy for all others."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from hypothesis import strategies as st

from torch_gradcheck.reporting.facts import (
    ContractEntry,
    ContractStatus,
    Coordinate,
    Diagnosis,
    DiagnosisKind,
    Facts,
    Pairs,
    ParameterReport,
    Provenance,
    Role,
    Status,
    Verdict,
    WrongMap,
)
from torch_gradcheck.reporting.report import Report

NAN, INF = float("nan"), float("inf")


def facts(*rows: ParameterReport, **changes: Any) -> Facts:
    """A check of the `rows` that says nothing remarkable, but for `changes`."""
    plain = Facts(
        parameters=rows,
        relative_error=4.2e-9,
        loss=2.302585093,
        method="exact",
        evaluations=1234,
        seconds=0.391,
        tolerance=1e-5,
        dtype="float64",
        mode="eval",
        seed=0,
        noise=4.4e-16,
    )
    return replace(plain, **changes)


def match(name: str, *shape: int, relative_error: float = 3.1e-9, **changes: Any) -> ParameterReport:
    """A row that agrees."""
    return row(name, *shape, relative_error=relative_error, max_abs_error=2.4e-10, **changes)


def wrong(name: str, *shape: int, relative_error: float = 0.333, **changes: Any) -> ParameterReport:
    """A row in which every coordinate is wrong."""
    plain = row(name, *shape, status=Status.MISMATCH, relative_error=relative_error, max_abs_error=0.0173)
    return replace(plain, **{"mismatched": plain.checked, **changes})


def unmeasured(name: str, *shape: int, status: Status = Status.FROZEN) -> ParameterReport:
    """A row that was not checked: its figures are NaN."""
    return ParameterReport(name, (), shape, size(shape), status)


def row(name: str, *shape: int, status: Status = Status.MATCH, **changes: Any) -> ParameterReport:
    """A row whose figures belong together."""
    plain = ParameterReport(name, (), shape, size(shape), status, noise=1.1e-11, eps=1e-6, checked=size(shape))
    changed = replace(plain, **changes)
    ratio = changed.relative_error
    return replace(changed, verdict=None if ratio is None else Verdict.of(ratio))


def size(shape: tuple[int, ...]) -> int:
    """How many entries a tensor of this shape has."""
    total = 1
    for length in shape:
        total *= length
    return total


def coordinate(*index: int, analytic: float = 0.5, numeric: float = 0.25, **changes: Any) -> Coordinate:
    """A wrong coordinate, unless `changes` say otherwise."""
    return replace(Coordinate(index, analytic, numeric, noise=1.1e-11, status=Status.MISMATCH), **changes)


def transformer_layer(prefix: str = "") -> list[ParameterReport]:
    """The twelve parameters of `nn.TransformerEncoderLayer(16, 4, 64)`, all of them right."""
    return [
        match(f"{prefix}self_attn.in_proj_weight", 48, 16),
        match(f"{prefix}self_attn.in_proj_bias", 48, relative_error=8.8e-8),
        match(f"{prefix}self_attn.out_proj.weight", 16, 16),
        match(f"{prefix}self_attn.out_proj.bias", 16),
        match(f"{prefix}linear1.weight", 64, 16),
        match(f"{prefix}linear1.bias", 64),
        match(f"{prefix}linear2.weight", 16, 64),
        match(f"{prefix}linear2.bias", 16),
        match(f"{prefix}norm1.weight", 16),
        match(f"{prefix}norm1.bias", 16),
        match(f"{prefix}norm2.weight", 16),
        match(f"{prefix}norm2.bias", 16),
    ]


def two_of_twelve_wrong() -> Facts:
    """A LayerNorm with a wrong backward."""
    rows = transformer_layer()
    rows[2] = wrong(
        rows[2].name,
        16,
        16,
        relative_error=2.1e-3,
        mismatched=3,
        diagnosis=Diagnosis(DiagnosisKind.PARTIAL, "right except in row 3 of 16, columns 0, 5 and 11."),
        worst=(
            coordinate(3, 5, analytic=-0.0312517, numeric=-0.0139482),
            coordinate(3, 0, analytic=0.0071, numeric=0.0070988),
            coordinate(3, 11, analytic=1.25e-4, numeric=1.24e-4),
            coordinate(3, 12, analytic=1.25e-9, numeric=1.24e-9),
        ),
    )
    rows[8] = wrong(
        rows[8].name,
        16,
        reason="16 of 16 coordinates are wrong by more than the tolerance and the error bar, at 4 step sizes.",
        diagnosis=Diagnosis(
            DiagnosisKind.SCALED,
            "dθ = 2.000 × the right gradient in every entry (residual 3e-9): a sum where a mean was meant, or a "
            "backward run twice.",
            2.0,
        ),
        worst=(coordinate(4, analytic=0.0346, numeric=0.0173), coordinate(0, analytic=-0.02, numeric=-0.01)),
    )
    place = "in the backward of FusedNorm at net.py:13"
    return facts(
        *rows,
        relative_error=0.0871,
        culprit="norm1",
        place=place,
        notes=["auto chose exact: 3,280 coordinates, 0.4 s."],
    )


def all_right() -> Facts:
    """The report everybody hopes for."""
    return facts(*transformer_layer())


def nothing_wrong_not_all_proven() -> Facts:
    """Every status but mismatch."""
    rows = transformer_layer()
    flat = "Both sides are below 3e-12, the noise: a wrong backward would look the same."
    rows[1] = row(rows[1].name, 48, status=Status.FLAT, max_abs_error=2e-13, reason=flat)
    rows[3] = row(rows[3].name, 16, status=Status.FLAT, max_abs_error=0.0, reason=flat)
    rows[5] = row(
        rows[5].name,
        64,
        status=Status.KINK,
        relative_error=0.02,
        max_abs_error=0.01,
        worst=(coordinate(7, analytic=0.0, numeric=0.5, status=Status.KINK, slopes=(0.0, 1.0)),),
        reason="At 1 of 64 coordinates J has a kink: slopes 0 and 1, the gradient is 0.",
    )
    rows[7] = row(rows[7].name, 16, status=Status.UNDECIDED, relative_error=0.4, max_abs_error=0.1, noise=0.3)
    rows[9] = unmeasured(rows[9].name, 16, status=Status.UNUSED)
    rows[11] = unmeasured(rows[11].name, 16)
    return facts(*rows)


def nothing_proven() -> Facts:
    """Not wrong, and yet no reason to be glad."""
    return facts(row("bias", 1, status=Status.FLAT, max_abs_error=0.0), relative_error=None)


def odd_shapes_and_figures() -> Facts:
    """NaN, infinities, empty and 0-dim parameters, complex entries, ties, names of all sorts."""
    return facts(
        match("scale"),
        match("empty", 0, 5, relative_error=0.0),
        match("embedding.weight", 50257, 768, aliases=("head.weight", "decoder.embedding.weight")),
        match("conv.weight", 1024, 1024, 3, 3, 3),
        wrong(
            "spectral.weight",
            8,
            5,
            worst=(
                coordinate(7, 4, part="imag", analytic=-0.5, numeric=0.5),
                coordinate(0, 0, part="real", status=Status.UNDECIDED, noise=NAN),
            ),
        ),
        wrong(
            "not_finite",
            2,
            relative_error=NAN,
            max_abs_error=INF,
            reason="The gradient on trial is NaN or infinite at 2 of 2 coordinates.",
            worst=(coordinate(0, analytic=NAN), coordinate(1, analytic=-INF)),
        ),
        match("heads.[0].[bold]weight", 3),
        match("face.:smile:", 3),
        match("层.権重.weight", 3),
        match("line\nbreak\x1b[31m", 3),
        relative_error=NAN,
        loss=INF,
        noise=NAN,
        culprit="heads.[0]",
        notes=[
            "float32 casts were overridden in 3 places, model.rotary_emb among them: the check is in float64 all the "
            "way through.",
            "[red]The step[/red] was widened from 1e-07 to 1e-05: the noise of J is 4e-16.",
        ],
    )


def two_hundred_tensors() -> Facts:
    """A large model: two wrong parameters, one that is flat, a frozen embedding."""
    rows = [unmeasured("model.embed_tokens.weight", 32000, 4096)]
    for layer in range(17):
        rows += transformer_layer(f"model.decoder.layers.{layer}.")
    rows[40] = wrong(rows[40].name, *rows[40].shape, mismatched=15)
    rows[150] = wrong(rows[150].name, *rows[150].shape, relative_error=1.9e-2)
    rows[14] = row(rows[14].name, 48, status=Status.FLAT, max_abs_error=1e-14)
    rows[99] = replace(rows[99], relative_error=7.7e-6, verdict=Verdict.GOOD)
    return facts(*rows, relative_error=3.4e-3, method="projected")


def everything_wrong() -> Facts:
    """More wrong parameters than are worth telling one by one."""
    rows = [wrong(f"blocks.{index}.weight", 4, worst=(coordinate(1),), reason="wrong.") for index in range(60)]
    return facts(*rows, relative_error=0.333)


def partly_wrong() -> Facts:
    """Wrong in places, drawn; the model's own forward is the culprit."""
    cells = tuple(tuple(float(row in (3, 4) and column != 6) for column in range(8)) for row in range(10))
    blocks = ((0.0, 0.0, 0.0, 0.2, 0.5, 0.75, 1.0, 1.0, NAN),)
    rows = [
        wrong("fc.weight", 10, 8, mismatched=14, map=WrongMap(cells, "10 rows", "8 columns", (1, 1))),
        wrong("fc.bias", 900, mismatched=345, map=WrongMap(blocks, "", "900 entries", (1, 100))),
        wrong("all", 4, map=WrongMap(((1.0, 1.0, NAN, 1.0),), "", "4 entries", (1, 1))),
    ]
    return facts(*rows, culprit="")


CONTRACT = {
    "repeatable": "two equal calls differ by 2e-16 of the largest entry, as rounding",
    "inputs_kept": "",
    "grad_output_kept": "",
    "layouts": "",
    "needs_input_grad": "",
    "undefined_grads": "The function has one output.",
    "shapes_and_dtypes": "",
    "released": "",
    "second_order": "The backward says that it cannot be differentiated: it is once_differentiable.",
    "forward_ad": "The Function has no jvp.",
    "vmap": "The Function has no jvp.",
}
"""What is said of each entry that holds, and of those that do not apply."""


def contract(**failures: str) -> list[ContractEntry]:
    """A contract kept but for `failures`."""
    without = dict.fromkeys(("undefined_grads", "forward_ad", "vmap"), ContractStatus.NOT_APPLICABLE)
    return [
        ContractEntry(name, ContractStatus.FAILED, failures[name])
        if name in failures
        else ContractEntry(name, without.get(name, ContractStatus.PASSED), message)
        for name, message in CONTRACT.items()
    ]


def kept_contract() -> Facts:
    """A function of which all is right."""
    return facts(match("x", 4, 3), match("weight", 3), contract=contract())


def broken_contract() -> Facts:
    """Right under a gradient that nobody looks at, and wrong in use."""
    failures = contract(
        grad_output_kept="The backward wrote to the gradient that it was given for output: 12 of 12 entries changed, "
        "the first from 0.081 to 0.162, at net.py:13. Others may hold the same tensor: compute a new one.",
        layouts="[red]With an expanded gradient[/red] (strides 0) the gradient for x is off by 0.25 of its largest "
        "entry:\nit reads the memory of grad and not its entries.",
    )
    return facts(match("x", 4, 3), match("weight", 3), contract=failures)


def wrong_gradient_and_contract() -> Facts:
    """A wrong row, and more failures than a headline names."""
    failures = contract(**dict.fromkeys(list(CONTRACT)[:6], "It was so, and should have been otherwise."))
    return facts(wrong("x", 4, 3, worst=(coordinate(1, 2),)), match("weight", 3), contract=failures, culprit="")


def no_parameters() -> Facts:
    """Nothing to check."""
    return facts(relative_error=None)


def inputs_among_the_rows() -> Facts:
    """Two parameters and a tensor of the batch."""
    return facts(wrong("batch[0]", 4, 3, role=Role.INPUT), match("weight", 2, 3), match("bias", 2))


def arguments_of_a_function() -> Facts:
    """Nothing but arguments."""
    return facts(match("x", 4, 3, role=Role.ARGUMENT), match("weight", 3, role=Role.ARGUMENT))


def shared_by_processes() -> Facts:
    """The work of two ranks of a process group."""
    return facts(match("weight", 2, 3), match("bias", 2), processes=2)


def of_reference(*rows: ParameterReport, **changes: Any) -> Facts:
    """The reference's own report, beside which a candidate was compared."""
    own = replace(facts(), parameters=tuple(replace(each, role=Role.ARGUMENT) for each in rows))
    return replace(own, notes=["The step was widened."], **changes)


def beside(name: str, *shape: int, ratio: float, worst: Coordinate, **changes: Any) -> ParameterReport:
    """A row of a candidate that is `ratio` times as far off as the reference in its dtype."""
    figures = {"relative_error": 8e-4 * ratio, "rounding_ratio": ratio, "noise": 0.03, "max_abs_error": 0.002 * ratio}
    return replace(row(name, *shape, role=Role.ARGUMENT, worst=[worst], **figures), eps=NAN, **changes)


def candidate_right() -> Facts:
    """A kernel as right as bfloat16 allows, its outputs too, and its contract kept."""
    near = coordinate(1, 2, analytic=0.502, numeric=0.5, noise=0.03, status=Status.MATCH)
    rows = [
        beside("q", 4, 33, ratio=1.3, worst=near, detectable=0.0039),
        beside("k", 4, 33, ratio=0.71, worst=near, detectable=0.004),
        beside("output", 4, 33, ratio=0.9, worst=near, detectable=0.004),
    ]
    rows[2] = replace(rows[2], role=Role.OUTPUT)
    own = of_reference(match("q", 4, 33), match("k", 4, 33))
    return facts(*rows, dtype="bfloat16", relative_error=8e-4, contract=contract(), reference=own)


def candidate_wrong() -> Facts:
    """A kernel with a wrong tail, one with a factor, in two dtypes, and two outputs of which one is wrong."""
    tail = coordinate(1, 32, analytic=0.0, numeric=0.5, noise=0.03)
    near = coordinate(1, 2, analytic=0.505, numeric=0.5, noise=0.03)
    found = "dθ is right except in column 32 of 33 (the tail after the last full block of 32), where it is 0"
    rows = [
        beside("q", 4, 33, ratio=160.0, worst=tail, mismatched=4, reason="4 of 132 coordinates are wrong"),
        beside("scale", 33, ratio=3.2, worst=near, mismatched=33, reason="1.01 times the right one as a whole"),
        beside("output", 4, 33, ratio=0.9, worst=near, detectable=0.004),
        beside("output[1]", 4, ratio=3e6, worst=replace(near, analytic=NAN), mismatched=1, reason="NaN"),
    ]
    partial, factor = Diagnosis(DiagnosisKind.PARTIAL, found), Diagnosis(DiagnosisKind.SCALED, "1.01", 1.01)
    rows[0] = replace(rows[0], status=Status.MISMATCH, diagnosis=partial)
    rows[1] = replace(rows[1], status=Status.MISMATCH, diagnosis=factor)
    rows[2:] = [replace(row, role=Role.OUTPUT) for row in rows[2:]]
    rows[3] = replace(rows[3], status=Status.MISMATCH, max_abs_error=NAN, relative_error=NAN, rounding_ratio=NAN)
    own = of_reference(match("q", 4, 33), match("scale", 33))
    return facts(*rows, dtype="bfloat16, float32", relative_error=NAN, reference=own)


def reference_wrong() -> Facts:
    """A reference that is wrong itself, which is said first; the candidate's row is undecided beside it."""
    of_wrong = Diagnosis(DiagnosisKind.SCALED, "dθ = 0.5 × the right gradient", 0.5)
    own = of_reference(wrong("q", 4, 33, diagnosis=of_wrong), match("k", 4, 33), culprit="Plain")
    near = coordinate(1, 2, analytic=0.502, numeric=0.5, noise=0.03, status=Status.MATCH)
    rows = [
        beside("q", 4, 33, ratio=430.0, worst=near, status=Status.UNDECIDED, reason="The reference is wrong."),
        beside("k", 4, 33, ratio=0.71, worst=near, detectable=0.004),
    ]
    notes = ["The reference is wrong in q.", *own.notes]
    return facts(*rows, dtype="float16", relative_error=8e-4, reference=own, notes=notes)


def pairs(analytic: tuple[float, ...], numeric: tuple[float, ...]) -> Pairs:
    """The entries of a tensor, those wrong that are not equal."""
    wrong = tuple(a != n for a, n in zip(analytic, numeric, strict=True))
    return Pairs(tuple(range(len(numeric))), analytic, numeric, wrong)


PROVENANCE = Provenance(
    model="net.Model<T>",
    again='check_module(model, loss_fn, batch, mode="train")',
    torch_gradcheck="0.1.0",
    torch="2.13.0+cpu",
    numpy="2.4.6",
    python="3.11.7",
    devices=("cpu",),
    platform="Linux 6.1",
    processor="A processor",
    date="2026-11-30",
)


def drawn() -> Facts:
    """Wrong tensors with all that a page draws, and where the report comes from."""
    cells = tuple(tuple(float(row in (3, 4) and column != 6) for column in range(8)) for row in range(10))
    right = tuple(tuple(0.1 * (row - column) for column in range(8)) for row in range(10))
    on_trial = tuple(
        tuple(g * (1 + share) for g, share in zip(*lines, strict=True)) for lines in zip(right, cells, strict=True)
    )
    in_places = WrongMap(cells, "10 rows", "8 columns", (1, 1), on_trial, right)
    in_blocks = WrongMap(((0.0, 0.2, 0.5, 0.75, 1.0, NAN),), "", "600 entries", (1, 100))
    everywhere = WrongMap(((1.0, 1.0, NAN, 1.0),), "", "4 entries", (1, 1))
    entries = pairs(sum(on_trial, ()), sum(right, ()))
    rows = [
        wrong("fc.weight", 10, 8, mismatched=14, worst=(coordinate(3, 7),), map=in_places, pairs=entries),
        wrong("fc.bias", 600, worst=(coordinate(500),), map=in_blocks, pairs=Pairs((), (), (), ())),
        wrong("all", 4, worst=(coordinate(0),), map=everywhere),
        match("right", 3, pairs=pairs((0.1, 0.2, -0.3), (0.1, 0.2, -0.3))),
    ]
    return facts(*rows, culprit="fc", provenance=PROVENANCE)


DRAWN_FACTS = drawn()

SAMPLES = {
    sample.__name__: sample()
    for sample in (
        two_of_twelve_wrong,
        all_right,
        nothing_wrong_not_all_proven,
        nothing_proven,
        odd_shapes_and_figures,
        two_hundred_tensors,
        everything_wrong,
        partly_wrong,
        kept_contract,
        broken_contract,
        wrong_gradient_and_contract,
        no_parameters,
        inputs_among_the_rows,
        arguments_of_a_function,
        shared_by_processes,
        candidate_right,
        candidate_wrong,
        reference_wrong,
    )
}


def report_of(found: Facts) -> Report:
    """The same facts as a report, as a check returns them."""
    return Report(**{field.name: getattr(found, field.name) for field in fields(Facts)})


def any_of(row_type: type[Any], **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Rows of a type with any values in any field, `parts` where given."""
    return st.builds(row_type, **{field.name: ... for field in fields(row_type)} | parts)


COUNT = st.integers(min_value=0, max_value=2**63)
SHAPE = st.lists(COUNT, max_size=6).map(tuple)
ANY_COORDINATE = any_of(Coordinate, index=SHAPE)
ANY_SHARE = st.just(NAN) | st.floats(min_value=0, max_value=1)
ANY_LINE = st.lists(ANY_SHARE, max_size=48).map(tuple)
ANY_MAP = any_of(WrongMap, cells=st.lists(ANY_LINE, max_size=16).map(tuple), block=st.tuples(COUNT, COUNT))
ANY_NUMBERS = st.lists(st.floats(), max_size=9).map(tuple)
ANY_ROW = any_of(
    ParameterReport,
    shape=SHAPE,
    numel=COUNT,
    checked=COUNT,
    mismatched=COUNT,
    worst=st.lists(ANY_COORDINATE, max_size=5).map(tuple),
    diagnosis=st.none() | any_of(Diagnosis),
    map=st.none() | ANY_MAP,
    pairs=st.none() | any_of(Pairs, analytic=ANY_NUMBERS, numeric=ANY_NUMBERS),
)
ANY_ROWS = st.lists(ANY_ROW, max_size=40).map(tuple)
ANY_REFERENCE = any_of(Facts, parameters=ANY_ROWS, reference=st.none(), in_grad=st.none())
ANY_FACTS = any_of(Facts, parameters=ANY_ROWS, reference=st.none() | ANY_REFERENCE, in_grad=st.none())
