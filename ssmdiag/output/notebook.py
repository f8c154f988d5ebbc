"""Results in a notebook: the page of the command line, without its frame."""

from __future__ import annotations

from importlib import import_module


class InNotebook:
    """A result that a notebook shows as a page."""

    def _repr_html_(self) -> str:
        # By name: reports know results, and results know nothing of reports.
        fragment: str = import_module("ssmdiag.reports.page").fragment(self)
        return fragment
