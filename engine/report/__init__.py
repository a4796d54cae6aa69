"""The account of a run: what it measured of itself (`collect_report`), its pictures, and the page that shows both."""

from .collect import collect_report
from .html.page import render_report

__all__ = ["collect_report", "render_report"]
