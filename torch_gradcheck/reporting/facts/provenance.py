"""Where a report comes from: of what model, by what versions, on what machine, when, and how to make it again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a check was made with. No part of what it found: two reports are equal whatever stands here.

    Attributes:
        model: the class of the model, such as `transformers.GPT2LMHeadModel`, or the name of the function.
        again: the call that makes the check again, with the options that were not left at their defaults; or the
            command.
        torch_gradcheck, torch, numpy, python: the versions.
        devices: where the tensors are, such as `cpu` or `cuda:0 (NVIDIA H100)`.
        platform: the operating system and its release.
        processor: the name of the CPU, or its architecture.
        date: the day on which the check ended, in UTC, as in `2026-11-30`. Not the time, so that equal checks of a day
            are written as equal files but for their seconds.
    """

    model: str = ""
    again: str = ""
    torch_gradcheck: str = ""
    torch: str = ""
    numpy: str = ""
    python: str = ""
    devices: tuple[str, ...] = ()
    platform: str = ""
    processor: str = ""
    date: str = ""
