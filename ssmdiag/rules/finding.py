"""`Finding`: one thing that is wrong with a checkpoint, and what to do. Rules produce them, reports print them."""

from __future__ import annotations

from dataclasses import dataclass

from ssmdiag.printable import module_name

Key = tuple[str, str, str]
"""What identifies a finding: rule, tensor (or layer, where it has no tensor) and family."""

SEVERITIES = ("note", "warning", "error")
"""From least to worst."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, with the evidence and what to do."""

    code: str
    severity: str
    """One of `SEVERITIES`."""
    layer: str | None
    """Path of the layer; None where it concerns the whole checkpoint."""
    count: int
    """How many modes, channels or values are affected."""
    value: float | None
    """The number that was compared with the threshold."""
    threshold: float | None
    message: str
    """What was seen: a phrase that follows the name of the layer."""
    advice: str
    rule: str = ""
    """The rule's name, such as `unstable-mode`."""
    family: str | None = None
    tensor: str | None = None
    """Cleaned name of the tensor at fault."""
    of: int | None = None
    """How many there are of what `count` counts."""
    baseline: str | None = None
    """Compared with a baseline: `new`, `worse` or `known`; None without a baseline."""

    @property
    def where(self) -> str:
        """Its layer as a sentence calls it; empty where it concerns the whole checkpoint."""
        return "" if self.layer is None else module_name(self.layer)

    @property
    def key(self) -> Key:
        """What identifies the finding in another checkpoint."""
        return key_of(self.code, self.layer, self.tensor, self.family)

    @property
    def rank(self) -> int:
        """Place of the severity in `SEVERITIES`."""
        return SEVERITIES.index(self.severity)


def key_of(code: str, layer: str | None, tensor: str | None, family: str | None) -> Key:
    """Return what identifies a finding with this code, layer, tensor and family."""
    return (code, tensor if tensor is not None else layer or "", family or "")


def worst(findings: tuple[Finding, ...]) -> str | None:
    """Return the worst severity among findings, or None where there are none."""
    return max(findings, key=lambda finding: finding.rank).severity if findings else None
