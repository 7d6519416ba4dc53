from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.reporting.close_names import close_names


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(4, 3)
        self.body = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
        self.decoder = nn.Linear(3, 4, bias=False)
        self.decoder.weight = self.encoder.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))


def names(model: nn.Module, *include: str, exclude: tuple[str, ...] = ()) -> list[str]:
    return [entry.name for entry in theta_of(model, include, exclude)]


def test_entries_are_in_the_order_of_named_parameters() -> None:
    model = Tied()
    assert names(model) == [name for name, _ in model.named_parameters()]


def test_a_tied_parameter_is_one_entry_with_aliases() -> None:
    theta = theta_of(Tied())
    [tied] = [entry for entry in theta if entry.aliases]
    assert (tied.name, tied.aliases, tied.shape) == ("encoder.weight", ("decoder.weight",), (4, 3))


def test_one_object_in_two_places_of_one_module_is_one_entry() -> None:
    layer = nn.Linear(2, 2)
    theta = theta_of(nn.Sequential(layer, layer, nn.ModuleList([layer])))
    assert [(entry.name, entry.aliases) for entry in theta] == [
        ("0.weight", ("1.weight", "2.0.weight")),
        ("0.bias", ("1.bias", "2.0.bias")),
    ]


def test_every_coordinate_of_the_flat_vector_has_a_name_and_an_index() -> None:
    theta = theta_of(Tied())
    located = [theta.locate(k) for k in range(theta.coordinates)]
    assert len(set(located)) == theta.coordinates == 12 + 6 + 2 + 6 + 3 + 1 + 4
    by_name = {}
    for name, index, part in located:
        by_name.setdefault(name, []).append((index, part))
    for entry in theta:
        indices = [index for index, part in by_name[entry.name] if part in (None, "real")]
        assert indices == list(np.ndindex(entry.shape))
    assert by_name["scale"] == [((), None)]
    assert by_name["phase"] == [((0,), "real"), ((0,), "imag"), ((1,), "real"), ((1,), "imag")]


@pytest.mark.parametrize("coordinate", [-1, 34, 10**9])
def test_no_such_coordinate(coordinate: int) -> None:
    with pytest.raises(IndexError, match=rf"θ has 34 coordinates, there is no coordinate {coordinate}"):
        theta_of(Tied()).locate(coordinate)


def test_frozen_parameters_are_entries_that_are_not_checked() -> None:
    model = Tied()
    model.body.requires_grad_(False)
    theta = theta_of(model)
    assert [entry.name for entry in theta if entry.frozen] == [
        f"body.{k}.{p}" for k in (0, 1) for p in ("weight", "bias")
    ]
    assert theta.coordinates == 34 - 17
    assert {theta.locate(k)[0] for k in range(theta.coordinates)} == {"encoder.weight", "scale", "phase"}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (("*.bias",), (), ["body.0.bias", "body.1.bias"]),
        (("body.[01].weight",), (), ["body.0.weight", "body.1.weight"]),
        (("decoder.*",), (), ["encoder.weight"]),
        (("scale", "phase"), (), ["scale", "phase"]),
        ((), ("body.*", "phase"), ["scale", "encoder.weight"]),
        (("body.*",), ("*.bias",), ["body.0.weight", "body.1.weight"]),
        ((), ("decoder.weight", "body.*", "phase"), ["scale"]),
    ],
    ids=["glob", "set", "alias", "several", "exclude", "both", "exclude by alias"],
)
def test_patterns(include: tuple[str, ...], exclude: tuple[str, ...], expected: list[str]) -> None:
    assert sorted(names(Tied(), *include, exclude=exclude)) == sorted(expected)


@pytest.mark.parametrize(
    ("pattern", "close"),
    [("body.0.wieght", "body.0.weight"), ("encoder", "encoder.weight"), ("Scale", "scale")],
)
@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_names_close_ones(argument: str, pattern: str, close: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"{argument}='{pattern}' matches no parameter.*{close}"):
        theta_of(Tied(), **{argument: [pattern]})


def test_patterns_distinguish_capitals() -> None:
    with pytest.raises(InvalidRequestError):
        theta_of(Tied(), ["BODY.*"])


def test_hints_are_the_close_names_or_else_the_first_ones() -> None:
    known = [f"layer.{k}.weight" for k in range(9)]
    assert close_names("layer.3.weigth", known).startswith("close names: layer.3.weight")
    assert close_names("zzz", known) == f"known names: {', '.join(known[:5])}, ..."
    assert close_names("zzz", ["a", "b"]) == "known names: a, b"


REFUSED = {
    "no parameters": (nn.ReLU(), (), (), r"model \(ReLU\) has no parameters"),
    "all frozen": (
        nn.Linear(2, 2).requires_grad_(False),
        (),
        (),
        "none of the 2 selected parameters requires a gradient",
    ),
    "nothing left": (nn.Linear(2, 2), ("weight",), ("*",), "leave none of the 2 parameters"),
    "lazy": (nn.LazyLinear(2), (), (), r"parameter 'weight' is not initialised yet \(a lazy module\)"),
    "meta": (nn.Linear(2, 2, device="meta"), (), (), "parameter 'weight' is on the meta device"),
}


@pytest.mark.parametrize(("model", "include", "exclude", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        theta_of(model, include, exclude)


def test_a_sparse_parameter_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.extra = nn.Parameter(torch.eye(2).to_sparse())
    with pytest.raises(InvalidRequestError, match=r"parameter 'extra' is a .* of layout torch\.sparse_coo"):
        theta_of(model)


def test_a_row_that_is_never_trained_is_not_tried() -> None:
    entry = theta_of(nn.Embedding(4, 3, padding_idx=1))[0]
    assert entry.coordinates == 12
    assert entry.coordinates_on_trial.tolist() == [0, 1, 2, 6, 7, 8, 9, 10, 11]
