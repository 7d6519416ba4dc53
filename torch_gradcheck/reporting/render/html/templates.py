"""Fills in templates of pages and fragments: files named `*.html.jinja`, each beside the module that fills it in."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def filled(package: str, name: str, **values: Any) -> str:
    """Returns a template with these values in it; strings are escaped unless the template calls them safe.

    Args:
        package: the one that the template's file lies in.
        name: of the file, without its ending.
        values: by the names that the template has for them.
    """
    return _templates_in(package).get_template(f"{name}.html.jinja").render(**values)


@cache
def _templates_in(package: str) -> Environment:
    from jinja2 import Environment, PackageLoader  # here and not above: importing torch_gradcheck must stay quick

    return Environment(loader=PackageLoader(package, ""), autoescape=True, trim_blocks=True, lstrip_blocks=True)
