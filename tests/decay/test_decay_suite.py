"""Draw, compare, recover: how often `compare_decay` finds the law a kernel was made with, and how often it errs.

A verdict is wrong if its law is not among those accepted for the kernel (see `decay_suite`), or if the law is right and
a parameter it states lies outside the kernel's tolerance. "Undetermined" is no verdict, and is bounded by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ssmdiag.decay.decay import Law
from tests.decay.decay_suite import KINDS, Verdict, confusion, run

SEEDS = range(5)
RIGHT_OR_UNDETERMINED = 0.98
WRONG_LAW = 0.005
PURE = ("exponential", "polynomial", "truncated", "flat", "power sum")
"""Kinds that follow one law exactly: there "undetermined" is a failure too."""
RECOVERED = dict.fromkeys(PURE, 0.98) | {"neighbours": 0.95, "ring": 0.6}


def wrong(verdict: Verdict) -> bool:
    return verdict.law is not Law.UNDETERMINED and not (verdict.right_law and verdict.right_numbers)


def assert_rates(verdicts: Sequence[Verdict]) -> None:
    table = confusion(list(verdicts))
    decided = [verdict for verdict in verdicts if verdict.law is not Law.UNDETERMINED]
    assert sum(map(wrong, verdicts)) <= (1 - RIGHT_OR_UNDETERMINED) * len(verdicts), table
    assert sum(not verdict.right_law for verdict in decided) <= WRONG_LAW * len(verdicts), table
    for kind, share in RECOVERED.items():
        mine = [verdict for verdict in verdicts if verdict.case.kind == kind]
        found = sum(v.law is not Law.UNDETERMINED and v.right_law and v.right_numbers for v in mine)
        assert found >= share * len(mine), table
    imitations = [verdict.law for verdict in verdicts if verdict.case.kind == "imitation"]
    assert Law.POLYNOMIAL not in imitations, table


@pytest.mark.slow
def test_laws_are_recovered_from_525_kernels_over_five_seeds() -> None:
    verdicts = [verdict for seed in SEEDS for verdict in run(seed, 7)]
    assert len(verdicts) == 525 == 35 * len(KINDS)
    assert_rates(verdicts)


@pytest.mark.slow
def test_laws_are_recovered_from_9000_kernels_over_ten_seeds() -> None:
    verdicts = [verdict for seed in range(10, 20) for verdict in run(seed, 60)]
    print("\n" + confusion(verdicts))
    assert_rates(verdicts)
    # Many draws bear the promise itself: fewer than 1 in 200 is wrong in law or in number.
    assert sum(map(wrong, verdicts)) < 0.005 * len(verdicts), confusion(verdicts)
