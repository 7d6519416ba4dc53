"""Cuts names in the middle to the width of a column, so that different names stay different."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace


def shortened(names: Sequence[str], width: int, ellipsis: str = "…") -> list[str]:
    """Returns `names`, each in at most `width` terminal cells; `ellipsis` replaces the middle of longer names.

    The end keeps two thirds of the width, since it says more than the beginning. The number of a block, as the 7 of
    `layers.7.norm.weight`, is kept before either, and so are numbers in the middle, as `the_…7…weight`. Where two
    names would look equal, the cut moves to the place where they differ. Where no cut tells them apart, they are
    numbered.
    """
    cut = _Cut(width, ellipsis)
    shown = {
        name: name if cells_of(name) <= width else _with_numbers(_from_block(name, ellipsis), cut) for name in names
    }
    for alike in _alike(shown):
        shown |= _told_apart(alike, cut)
    shown |= _numbered([name for alike in _alike(shown) for name in alike], cut)
    return [shown[name] for name in names]


def _from_block(name: str, ellipsis: str) -> str:
    """Returns `…7.norm.weight` for `model.layers.7.norm.weight`."""
    return re.sub(r"^.*\.(?=\d+\.)", ellipsis, name)


NUMBER = re.compile(r"\d+")

TRIES = 3
"""Numbers between both ends shorten these, which may cut further numbers out."""


def _with_numbers(name: str, cut: _Cut) -> str:
    """Returns the cut name with the numbers that the cut would lose, where they leave two thirds of the width."""
    middle = cut.ellipsis
    for _ in range(TRIES):
        beginning, end = cut.ends(name, middle)
        stays = (len(beginning), len(name) - len(end))
        lost = [each[0] for each in NUMBER.finditer(name) if each.end() > stays[0] and each.start() < stays[1]]
        middle = cut.ellipsis + "".join([number + cut.ellipsis for number in lost])
    if cells_of(name) <= cut.width or middle == cut.ellipsis or cells_of(middle) > cut.width // 3:
        return cut(name)
    beginning, end = cut.ends(name, middle)
    return f"{beginning}{middle}{end}"


@dataclass(frozen=True, slots=True)
class _Cut:
    """Cuts a name to `width` cells."""

    width: int
    ellipsis: str

    def __call__(self, name: str, head: int | None = None) -> str:
        """Returns the name cut; `head` cells, a third if it is None, are for its beginning."""
        return name if cells_of(name) <= self.width else self.ellipsis.join(self.ends(name, self.ellipsis, head))

    def ends(self, name: str, middle: str, head: int | None = None) -> tuple[str, str]:
        """Returns the beginning and the end of a name that have room around `middle`."""
        room = self.width - cells_of(middle)
        head = (room + len(self.ellipsis)) // 3 if head is None else head
        beginning, end = name, name
        while beginning and cells_of(beginning) > head:
            beginning = beginning[:-1]
        while end and cells_of(end) > room - head:
            end = end[1:]
        return beginning, end


def _alike(shown: dict[str, str]) -> list[list[str]]:
    """Returns the groups of names that are shown as the same string."""
    groups: dict[str, list[str]] = {}
    for name, form in shown.items():
        groups.setdefault(form, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _told_apart(names: Sequence[str], cut: _Cut) -> dict[str, str]:
    """Returns the names under the first cut that keeps them apart; an empty dict if there is none."""
    for head in range(1, cut.width - len(cut.ellipsis)):
        forms = [cut(name, head) for name in names]
        if len(set(forms)) == len(names):
            return dict(zip(names, forms, strict=True))
    return _by_what_differs(names, cut)


def _by_what_differs(names: Sequence[str], cut: _Cut) -> dict[str, str]:
    """Returns `…` and the part that differs, then the end; an empty dict where there is no room for that."""
    start = _common(names)
    after = _common([name[start:][::-1] for name in names])
    forms = [f"{cut.ellipsis}{name[start : len(name) - after]}{cut.ellipsis}" for name in names]
    room = cut.width - max(map(cells_of, forms))
    if not start or room < 1 or not after:
        return {}
    forms = [form + name[len(name) - min(after, room) :] for form, name in zip(forms, names, strict=True)]
    fit = len(set(forms)) == len(names) and max(map(cells_of, forms)) <= cut.width
    return dict(zip(names, forms, strict=True)) if fit else {}


def _common(names: Sequence[str]) -> int:
    """Returns the length of the beginning that all names share."""
    alike = [len(set(characters)) == 1 for characters in zip(*names, strict=False)]
    return [*alike, False].index(False)


def _numbered(names: Sequence[str], cut: _Cut) -> dict[str, str]:
    return {
        name: f"{replace(cut, width=cut.width - len(f'#{number}'))(name)}#{number}"
        for number, name in enumerate(names, start=1)
    }


def cells_of(text: str) -> int:
    """Returns the number of terminal cells that `text` takes."""
    from rich.cells import cell_len  # here and not above: importing torch_gradcheck must stay quick

    return cell_len(text)
