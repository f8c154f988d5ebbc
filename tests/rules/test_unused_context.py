"""SSM603: answers that use far less of the past than there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rules.probed import Document, findings_of

CODE = "SSM603"


@pytest.mark.parametrize(
    ("reach", "most", "reported"),
    [(20, 30, True), (20, 70, False), (63, 63, True), (64, 64, False), (20, None, False), (None, None, False)],
)
def test_a_reach_surely_under_a_sixteenth_of_what_was_tested_is_a_warning(
    tmp_path: Path, reach: int | None, most: int | None, reported: bool
) -> None:
    def change(found: Document) -> None:
        found["use"]["by_cutting"] |= {"tested": 1024, "all_but_a_hundredth": reach, "interval": [1, most]}

    findings = findings_of(CODE, tmp_path, change)
    assert bool(findings) is reported
    for finding in findings:
        assert reach is not None
        assert (finding.severity, finding.layer, finding.value) == ("warning", None, reach / 1024)
        assert f"with {reach} tokens of it, of 1,024 tested" in finding.message


def test_without_a_use_nothing_is_said(tmp_path: Path) -> None:
    def change(found: Document) -> None:
        found["use"] = None

    assert not findings_of(CODE, tmp_path, change)
