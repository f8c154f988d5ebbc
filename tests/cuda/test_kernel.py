"""Kernels and their energies on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ssmdiag import Recurrence
from ssmdiag.assessment.memory import assess_memory, lag_edges, summarise_memory
from ssmdiag.decay.decay import compare_decay
from ssmdiag.kernel.energy import band_energy, horizon, tail_energy
from ssmdiag.kernel.kernel import compute_kernel, iter_kernel, sample_kernel
from ssmdiag.kernel.powers import profile
from tests.cuda.same import SINGLE, assert_close, assert_same

Pair = tuple[Recurrence, Recurrence]
LENGTH = 64


def test_kernels_and_energies(pair: Pair) -> None:
    away, home = map(profile, pair)
    assert_same(compute_kernel(away, LENGTH), compute_kernel(home, LENGTH))
    for dtype in (torch.float32, torch.float64):
        single = compute_kernel(away, LENGTH, dtype=dtype, product=torch.float32)
        assert_close(single.values.double().cpu(), compute_kernel(home, LENGTH).values, tolerance=SINGLE)
    parts = list(iter_kernel(away, LENGTH, memory_limit=2**14))
    for part, own in zip(parts, iter_kernel(home, LENGTH, memory_limit=2**14), strict=True):
        assert_same(part, own)
    assert_same(sample_kernel(away, [0, 5, 10**6]), sample_kernel(home, [0, 5, 10**6]))
    assert_same(tail_energy(away, [0, 5, 100]), tail_energy(home, [0, 5, 100]))
    assert_same(band_energy(away, lag_edges(LENGTH)), band_energy(home, lag_edges(LENGTH)))
    assert_same(horizon(away), horizon(home))


@pytest.mark.slow
def test_laws_of_kernels_that_swing_and_that_do_not(cuda: str) -> None:
    lag = torch.arange(400, dtype=torch.float64)
    kernels = torch.stack([(-lag / 30).exp(), (1 + lag) ** -1.5, (-lag / 30).exp() * lag.cos(), 1 + 0 * lag])
    edges = lag_edges(400)
    mean_square = torch.stack([part.square().mean(1) for part in kernels.split(edges.diff().tolist(), 1)], 1)
    home = compare_decay(edges, mean_square, 1e-30, context=400)
    assert_same(compare_decay(edges, mean_square.to(cuda), 1e-30, context=400), home)
    assert len(set(home.law.tolist())) == 3


@pytest.mark.slow
def test_a_memory_is_summarised_with_its_curves(pair: Pair) -> None:
    away, home = (assess_memory(each, 256) for each in pair)
    assert_same(away, home)
    assert_same(summarise_memory(away), summarise_memory(home))
    assert summarise_memory(home)[1].envelope, "there is a picture to draw"


@pytest.mark.slow
def test_a_kernel_is_drawn(small: Path, both: Callable[..., None], run: Callable[..., object], cuda: str) -> None:
    both("kernel", small, "--length", LENGTH)
    picture = run("kernel", small, "--length", LENGTH, "--device", cuda)
    assert picture == run("kernel", small, "--length", LENGTH)


@pytest.mark.parametrize("ending", ["safetensors", pytest.param("npz", marks=pytest.mark.slow)])
def test_kernels_are_written(
    small: Path, ending: str, run: Callable[..., tuple[int, str, str]], cuda: str, tmp_path: Path
) -> None:
    files = []
    for device in (cuda, "cpu"):
        path = tmp_path / f"{device}.{ending}"
        code, _, errors = run("kernel", small, "--length", LENGTH, "--output", path, "--device", device)
        assert (code, errors) == (0, "")
        files.append(load_file(path) if ending == "safetensors" else dict(np.load(path)))
    away, home = files
    assert away.keys() == home.keys()
    for name in home.keys() - {"metadata"}:
        assert_close(torch.as_tensor(away[name]), torch.as_tensor(home[name]), tolerance=SINGLE)
