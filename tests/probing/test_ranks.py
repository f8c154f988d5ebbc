"""Processes that each measure their part of the texts find what one finds on all of them; here they are threads."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

import ssmdiag
from ssmdiag.probing.probe import ProbedMemory
from tests.families.tiny_transformers import tiny_model
from tests.retrain.test_distributed import on_two_ranks

Result = TypeVar("Result")
Gather = Callable[[Any], list[Any]]
LENGTH = 16
CUTS = 4
"""As many passes as there are starts in a text: nothing is drawn."""


def on_ranks(count: int, measure: Callable[[int, Gather], Result]) -> list[Result]:
    """Return what `measure` returns on each of several ranks, that exchange what they found as processes do."""
    barrier, places = Barrier(count, timeout=60), [b""] * count

    def on(rank: int) -> Result:
        def gather(item: Any) -> list[Any]:
            places[rank] = pickle.dumps(item)
            barrier.wait()
            found = [pickle.loads(place) for place in places]
            barrier.wait()
            return found

        return measure(rank, gather)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(on, range(count)))


def probed(model: nn.Module, texts: Sequence[Tensor], **options: Any) -> ProbedMemory:
    return ssmdiag.probe(model, list(texts), cuts=CUTS, channels=4, positions=2, **options)


def assert_same(one: ProbedMemory, other: ProbedMemory) -> None:
    assert (one.texts, one.length, one.use_reason) == (other.texts, other.length, other.use_reason)
    for ours, theirs in zip(one.layers, other.layers, strict=True):
        assert ours.observed is not None
        assert theirs.observed is not None
        for name in ("censored", "reset", "hold"):
            assert getattr(ours.observed, name) == pytest.approx(getattr(theirs.observed, name), rel=1e-12)
        for name in ("min", "p05", "median", "p95", "p99", "max"):
            lives = (getattr(each.observed.half_life, name) for each in (ours, theirs) if each.observed)
            assert next(lives) == pytest.approx(next(lives), rel=1e-9)
        assert torch.tensor(ours.observed.retention).allclose(torch.tensor(theirs.observed.retention))
    assert one.use is not None
    assert other.use is not None
    assert (one.use.tokens, one.use.sees_ahead) == (other.use.tokens, other.use.sees_ahead)
    assert one.use.loss == pytest.approx(other.use.loss, rel=1e-9)
    assert one.use.by_cutting.intervals == other.use.by_cutting.intervals
    assert torch.tensor(one.use.by_cutting.lost).allclose(torch.tensor(other.use.by_cutting.lost))


def test_two_ranks_find_what_one_finds_on_all_texts() -> None:
    model = tiny_model("mamba2", num_hidden_layers=1)
    texts = torch.randint(3, 64, (3, LENGTH), generator=torch.Generator().manual_seed(0)).split(1)
    parts = [texts[:2], texts[2:]]
    models = [deepcopy(model) for _ in parts]
    one, other = on_ranks(2, lambda rank, gather: probed(models[rank], parts[rank], gather=gather))
    alone = probed(model, texts)
    assert one == other or (one.use == other.use and one.layers == other.layers)
    repeats = 2 * LENGTH - 3  # each rank measures the noise of its own
    assert alone.use is not None
    assert one.use is not None
    assert one.use.tokens == alone.use.tokens + repeats
    alone = ProbedMemory(**{**vars(alone), "use": type(alone.use)(**{**vars(alone.use), "tokens": one.use.tokens})})
    assert_same(one, alone)


class Breaking(nn.Module):
    """Answers NaN to a token that one of the texts has, once it stands alone."""

    def forward(self, x: Tensor) -> Tensor:
        answer = nn.functional.one_hot(x, 8).float().cumsum(1)
        return answer.where((x != 7)[..., None] | (x.shape[1] > 1), torch.nan)


def test_a_rank_that_cannot_measure_the_use_tells_the_others_why() -> None:
    texts = [torch.arange(LENGTH)[None] % 7, torch.arange(LENGTH)[None] % 8]
    found = on_ranks(2, lambda rank, gather: probed(Breaking(), [texts[rank]], gather=gather))
    assert {each.use for each in found} == {None}
    assert all("NaN" in (each.use_reason or "") for each in found)


@pytest.mark.slow
def test_the_command_under_torchrun_reports_once(tmp_path: Path) -> None:
    model = tiny_model("mamba2", vocab_size=256).float()
    model.config.dtype = "float32"
    model.save_pretrained(tmp_path / "tiny")
    (tmp_path / "text").write_text("what it says it says\n" * 40)
    options = ["--text", str(tmp_path / "text"), "--length", "24", "--texts", "5", "--cuts", "6", "-f", "json"]
    command = ["-m", "ssmdiag", "probe", str(tmp_path / "tiny"), *options]
    run = on_two_ranks(*command)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    alone = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    one = json.loads(alone.stdout)
    assert found["texts"] == one["texts"] == 5
    for ours, theirs in zip(found["layers"], one["layers"], strict=True):
        assert ours["observed"]["half_life"]["median"] == pytest.approx(theirs["observed"]["half_life"]["median"])
    assert found["use"]["by_cutting"]["interval"] == one["use"]["by_cutting"]["interval"]
    few = on_two_ranks(*command, "--texts", "1")
    assert few.returncode != 0
    assert few.stderr.count("1 texts or batches for 2 ranks") == 1
