"""The history of a monitored run: what `.grad` and the weights of each parameter were on each step that was checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

from torch_gradcheck.reporting.close_names import close_names
from torch_gradcheck.reporting.printable import printable
from torch_gradcheck.reporting.render.encodable import encodable
from torch_gradcheck.reporting.render.json_report import fields_in_json
from torch_gradcheck.reporting.render.terminal import page_of

PRINTED = 40
"""The largest number of records that `print` shows."""


@dataclass(frozen=True, slots=True)
class GradientRecord:
    """One parameter on one step that was checked, when the loop called `step`; None stands for what is not known.

    Norms are Euclidean, summed in float64; a loss scale is taken off. A parameter without a `.grad` has None in all
    that is said of its gradient: none is something else than zero.

    Attributes:
        step: the number of the step, from 0.
        name: the first name of the parameter in `named_parameters()`.
        numel: the number of its entries.
        grad_norm: ‖g‖ of its `.grad`, as the loop left it: of all batches that are accumulated, clipped if it clips.
        grad_max: max |gᵢ|.
        grad_mean: the mean of |gᵢ|.
        zeros: the share of entries of `.grad` that are exactly 0, from 0 to 1.
        finite: whether no entry of `.grad` is NaN or infinity.
        weight_norm: ‖w‖ of its weights before the update.
        update_norm: ‖Δw‖ of what the step did to the weights: until the next call of `step`, or `close`. 0 where the
            optimizer did not step. None until then, and on other ranks than the first of a model that is not sharded.
        update_ratio: ‖Δw‖ / ‖w‖; None also where all weights were 0.
        error_bar: the largest error bar of the numeric derivatives that `.grad` was compared with, in its unit.
        status: the word for its `.grad` in the report of the step, such as `match`; None where that step could not be
            checked.
    """

    step: int
    name: str
    numel: int
    grad_norm: float | None
    grad_max: float | None
    grad_mean: float | None
    zeros: float | None
    finite: bool | None
    weight_norm: float
    update_norm: float | None = None
    update_ratio: float | None = None
    error_bar: float | None = None
    status: str | None = None


class GradientHistory(Sequence[GradientRecord]):
    """The records of a run: steps in order, in each the parameters in the order of `named_parameters()`.

    A sequence of rows (`pandas.DataFrame(history)` has a column for each attribute), which is also selected from:

        history["1.weight"]         the rows of one parameter, a history again
        history.at(1000)            the rows of one step, a history again
        history[0], history[-1]     one row, by its place
        history.steps, .names       the numbers of the steps, the names of the parameters

    `print(history)` shows the most important columns of the first rows.

    Args:
        records: the rows.
        aliases: the other names of tied parameters → the name in the rows.
    """

    def __init__(self, records: Iterable[GradientRecord] = (), aliases: Mapping[str, str] | None = None) -> None:
        self._records = tuple(records)
        self._aliases = dict(aliases or {})

    @overload
    def __getitem__(self, key: int) -> GradientRecord: ...
    @overload
    def __getitem__(self, key: str | slice) -> GradientHistory: ...
    def __getitem__(self, key: int | str | slice) -> GradientRecord | GradientHistory:
        if isinstance(key, str):
            return self._named(key)
        return self._with(self._records[key]) if isinstance(key, slice) else self._records[key]

    def __len__(self) -> int:
        return len(self._records)

    def at(self, step: int) -> GradientHistory:
        """The rows of one step.

        Raises:
            KeyError: that step has none.
        """
        rows = [row for row in self._records if row.step == step]
        if not rows:
            known = f"there are some of {', '.join(map(str, self.steps))}" if self.steps else "there are none at all"
            raise KeyError(f"no record of step {step}; {known}")
        return self._with(rows)

    @property
    def steps(self) -> list[int]:
        """The steps that have records, in order."""
        return list(dict.fromkeys([row.step for row in self._records]))

    @property
    def names(self) -> list[str]:
        """The parameters that have records, in the order of `named_parameters()`."""
        return list(dict.fromkeys([row.name for row in self._records]))

    def to_dict(self) -> list[dict[str, object]]:
        """The rows in JSON's types; a float that JSON has no number for is `"nan"`, `"inf"` or `"-inf"`."""
        return [fields_in_json(row) for row in self._records]

    def to_json(self, indent: int | None = None) -> str:
        """`to_dict()` as strict JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __repr__(self) -> str:
        return f"<GradientHistory: {len(self)} records, {len(self.names)} parameters on {len(self.steps)} steps>"

    def __str__(self) -> str:
        shown = [(row, printable(row.name)) for row in self._records[:PRINTED]]
        width = max([len("parameter"), *[len(name) for _, name in shown]])
        lines = [f"{'step':>7}  {'parameter':{width}} {'‖g‖':>9} {'zeros':>6} {'‖Δw‖/‖w‖':>9}  status"]
        lines += [
            f"{row.step:7}  {name:{width}} {_figure(row.grad_norm):>9} {_percent(row.zeros):>6} "
            f"{_figure(row.update_ratio):>9}  {row.status or 'not checked'}"
            for row, name in shown
        ]
        more = len(self) - PRINTED
        printed = "\n".join([*lines, *([f"... and {more} more records"] if more > 0 else [])])
        return encodable(printed, page_of(sys.stdout).encoding)

    def _named(self, name: str) -> GradientHistory:
        own = self._aliases.get(name, name)
        rows = [row for row in self._records if row.name == own]
        if not rows:
            raise KeyError(f"no parameter {name!r} in this history; {close_names(name, self.names)}")
        return self._with(rows)

    def _with(self, records: Iterable[GradientRecord]) -> GradientHistory:
        return GradientHistory(records, self._aliases)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
