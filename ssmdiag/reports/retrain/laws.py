"""The target law beside the learned one: parameters, their errors, and the residuals of the rival laws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssmdiag.reports.kernel_text import with_error
from ssmdiag.reports.retrain.words import Column

if TYPE_CHECKING:
    from ssmdiag.retrain.results import ArmResult, LearnedLaw

SYMBOLS = {"exponent": "p", "offset": "t₀", "rate": "β"}
"""Parameters of (1 + t/t₀)^−p e^−βt."""
RIVALS = ("exponential", "polynomial", "truncated")
"""Laws whose residual is reported; a kernel that does not decay is far from all of them."""


def law_columns(runs: Sequence[ArmResult]) -> list[Column]:
    """Return the parameters of the target's law in each learned kernel and every law's residual; none without a law."""
    laws = [_law(run) for run in runs]
    first = next((law for law in laws if law), None)
    if first is None:
        return []
    columns = [
        (f"{symbol}, target\n{asked:g}", [_parameter(law, name) for law in laws])
        for name, symbol in SYMBOLS.items()
        if (asked := getattr(first.asked, name)) is not None
    ]
    ordered = sorted(RIVALS, key=lambda name: name != first.asked.law)
    return columns + [(f"{name}\noff, dB", [_residual(law, name) for law in laws]) for name in ordered]


def law_remark(run: ArmResult, name: str) -> str | None:
    """Return a sentence for a learned kernel that the target's law does not describe, None for any other."""
    law = _law(run)
    if law is None or law.describes:
        return None
    if law.window is None or law.residual_db is None:
        return f"{name}: no law can be fitted to the learned kernel: {law.reason}"
    first, last = law.window
    off = law.residual_db[law.asked.law]
    return (
        f"{name}: the target's law, {law.asked.law}, does not describe the learned kernel over lags {first:,} to "
        f"{last:,} ({off:.2g} dB rms off): {law.reason}"
    )


def _law(run: ArmResult) -> LearnedLaw | None:
    return run.kernel.law if run.kernel else None


def _parameter(law: LearnedLaw | None, name: str) -> str:
    value = getattr(law, name) if law else None
    if law is None or value is None:
        return "–"
    error = getattr(law, f"{name}_error")
    said = f"{value:.4g}" if error is None else with_error(value, error)
    return f"{said} (bound)" if name == "offset" and law.offset_at_bound else said


def _residual(law: LearnedLaw | None, name: str) -> str:
    if law is None or law.residual_db is None:
        return "–"
    value = law.residual_db[name]
    return f"{value:.2g}" if value >= 0.01 else "< 0.01"
