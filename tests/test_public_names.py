"""The package's front door: every public name is there, and opening it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import torch_gradcheck


@pytest.mark.parametrize("name", torch_gradcheck.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(torch_gradcheck, name) is not None
    assert name in dir(torch_gradcheck)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'check_modul'"):
        torch_gradcheck.check_modul  # noqa: B018


def test_importing_the_package_loads_none_of_its_parts() -> None:
    program = (
        "import sys, torch_gradcheck; print([name for name in sys.modules if name.startswith('torch_gradcheck.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['torch_gradcheck.version']"
