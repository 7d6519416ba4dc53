"""A report as HTML: a fragment for notebooks, and a page of its own; neither needs anything from elsewhere."""

from torch_gradcheck.reporting.render.html.page import html, page

__all__ = ["html", "page"]
