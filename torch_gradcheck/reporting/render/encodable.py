"""Writes what an encoding lacks in characters that it has: marks and symbols in ASCII, names of the user's escaped."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TypeVar

T = TypeVar("T")

IN_ASCII = {
    "✗": "x",
    "×": "x",
    "·": ".",
    "░": "-",
    "▒": "+",
    "▓": "*",
    "█": "#",
    "─": "-",
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "±": "+-",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "→": "->",
    "θ": "theta",
    "ε": "eps",
    "σ": "sigma",
    "Σ": "sum ",
    "∇": "grad ",
    "∂": "d",
    "Δ": "d",
    "√": "sqrt ",
    "∞": "inf",
    "‖": "||",
    "⟨": "<",
    "⟩": ">",
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
    "₂": "2",
    "²": "^2",
    "³": "^3",
    "\u2019": "'",
    "\u2018": "'",
    "“": '"',
    "”": '"',
}
"""What stands for a character where it cannot be encoded. What tables are drawn with keeps its width."""


def encodable(text: str, encoding: str) -> str:
    r"""Returns `text` in characters of `encoding`: `theta` for `θ`, `\u5c42` for one that has no spelling here."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join([_spelled(char, encoding) for char in text])
    return text


def all_encodable(value: T, encoding: str) -> T:
    """Returns the same dataclass, tuple or string, every string in it made `encodable`."""
    if isinstance(value, str):
        return encodable(value, encoding)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple([all_encodable(item, encoding) for item in value])  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: all_encodable(getattr(value, field.name), encoding) for field in fields(value)}
        return type(value)(**parts)
    return value


def _spelled(char: str, encoding: str) -> str:
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return IN_ASCII.get(char) or char.encode("unicode_escape").decode("ascii")
    return char
