"""A model watched on a GPU, and `ssmdiag watch --device cuda`: the numbers are those of the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ssmdiag import Watch
from tests.compare.test_comparison import STEPS, drifting, write_run
from tests.cuda.conftest import KINDS, slow_but
from tests.cuda.same import assert_same
from tests.watching.drifting import build


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=slow_but(kind, "channels")) for kind in KINDS])
def test_readings_of_a_model_that_is_moved_after_it_was_recognised(kind: str, cuda: str) -> None:
    home, away = build(KINDS[kind]), build(KINDS[kind])
    watches = [Watch(model, every=1, laws_every=2) for model in (away, home)]
    away.to(cuda)
    for step in range(2):
        here, there = (watch.step(step) for watch in watches)
        assert_same(here.layers, there.layers)
        assert here.warnings == there.warnings
        assert here.problems == there.problems == ()


@pytest.mark.slow
def test_a_run_is_followed(cuda: str, run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    write_run(tmp_path, STEPS, drifting)
    options = ("--idle", "0", "--interval", "0.1", "-f", "jsonl", "--fail-on", "converging")
    (code, out, err), (home_code, home, _) = (
        run("watch", tmp_path, *options, "--device", device) for device in (cuda, "cpu")
    )
    assert (code, home_code, err) == (1, 1, "")
    away, here = ([json.loads(line) for line in text.splitlines()] for text in (out, home))
    assert len(away) == len(STEPS)
    for document in (*away, *here):
        del document["device"], document["seconds"]
    assert_same(away, here)
