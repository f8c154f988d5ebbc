"""`Watch` on a GPU: the weights stay there, and the numbers are those of the CPU."""

from __future__ import annotations

import pytest

from ssmdiag import Watch
from tests.cuda.conftest import KINDS, slow_but
from tests.cuda.same import assert_same
from tests.watching.drifting import build


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=slow_but(kind, "selective")) for kind in KINDS])
def test_readings_of_a_model_that_is_moved_after_it_was_recognised(kind: str, cuda: str) -> None:
    home, away = build(KINDS[kind]), build(KINDS[kind])
    watches = [Watch(model, every=1, laws_every=2) for model in (away, home)]
    away.to(cuda)
    for step in range(2):
        here, there = (watch.step(step) for watch in watches)
        assert_same(here.layers, there.layers)
        assert here.warnings == there.warnings
        assert here.problems == there.problems == ()
