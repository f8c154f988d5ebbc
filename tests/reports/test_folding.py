"""Rows of several layers, and what they are called."""

from __future__ import annotations

import pytest

from ssmdiag.reports.folding import Row, _join


@pytest.mark.parametrize(
    ("labels", "joined"),
    [
        (("0", "1"), "0-1"),
        (("0-3", "4"), "0-4"),
        (("0-3", "5"), "0…5"),
        (("0…3", "4"), "0…4"),
        (("0-2, 3", "4-9"), "0-9"),
        (("0-99999999999999999", "100000000000000000"), "0-100000000000000000"),  # a name that is no run of layers
        ((f"0-{'9' * 5000}", "7"), f"0-{'9' * 5000}…7"),
        (("0 (forward)", "1 (forward)"), "0-1 (forward)"),
    ],
)
def test_rows_that_are_joined_name_their_ends(labels: tuple[str, str], joined: str) -> None:
    assert _join(*(Row(label, ()) for label in labels)).label == joined
