"""What is wrong with the operators of torch that a check calls wrong, each looked at by hand."""

from __future__ import annotations

EXPLANATIONS: dict[str, str] = {}
"""Operator → why its alarm is none of the check's mistakes."""
