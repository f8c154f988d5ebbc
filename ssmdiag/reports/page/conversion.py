"""A conversion as a page: proven or not, every layer with its largest differences, what was not looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssmdiag.reports.compare.conversion import proof_answer, proof_remarks
from ssmdiag.reports.compare.json import conversion_document
from ssmdiag.reports.folding import label_layers
from ssmdiag.reports.json import plain
from ssmdiag.reports.page.diagnosis import versions
from ssmdiag.reports.page.page import Page, at, digits

if TYPE_CHECKING:
    from ssmdiag.compare.conversion import ConversionProof


def page(proof: ConversionProof, *, command: str = "") -> Page:
    """Return the page of a conversion."""
    labels = label_layers([layer.a or layer.b or "" for layer in proof.layers])
    data = plain(conversion_document(proof))
    made = Page("A conversion: memory", proof_answer(proof, labels))
    if proof.problems:
        made.heading("Not read")
        made.remarks(proof.problems)
    made.heading("Layers")
    heads = [
        "layer", "outcome", "proven", "channels", "modes", "stored in a", "stored in b", "allowed",
        "largest difference of a mode", "rate in a", "rate in b", "frequency in a", "frequency in b",
        "largest difference of kernels", "at lag", "of what steers it", "tensor", "in a", "in b", "a", "b",
    ]  # fmt: skip
    states = ["" if layer.proven else "error" for layer in proof.layers]
    made.table("Differences are relative", heads, map(_row, data["layers"], labels), states)
    made.remarks(proof_remarks(proof, labels))
    lags = data["lags"]
    settings = {
        "a": data["a"],
        "b": data["b"],
        "lags compared": len(lags) or None,
        "last lag": lags[-1] if lags else None,
    }
    made.settings(command, {**settings, **versions(data)})
    return made


def _row(data: Mapping[str, Any], label: str) -> list[Any]:
    mode, kernel = data["largest_difference"], data["kernel"]
    compared = at(data, "steering", "compared") or []
    worst = max(compared, key=lambda one: float(one["relative"]), default=None)
    return [
        label, data["outcome"], data["proven"], data["channels"], data["modes"], data["dtypes"]["a"],
        data["dtypes"]["b"], digits(data["tolerance"]), digits(at(mode, "relative")),
        *(digits(at(mode, side, what), 6) for what in ("rate", "frequency") for side in "ab"),
        digits(at(kernel, "relative")), at(kernel, "lag"), digits(at(worst, "relative")), at(worst, "tensors", "a"),
        *(digits(at(worst, side), 6) for side in "ab"), data["a"], data["b"],
    ]  # fmt: skip
