"""The account of a run: what it measured of itself (`gather`), its pictures, and the page that shows both."""

from .collect import gather
from .html.page import render_report

__all__ = ["gather", "render_report"]
