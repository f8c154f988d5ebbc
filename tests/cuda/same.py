"""What a GPU found beside what the CPU found: numbers to a tolerance, everything else to the letter."""

from __future__ import annotations

import cmath
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmdiag.compare.spectrum_matching import Difference

TOLERANCE = 1e-10
"""Of what is float64 throughout."""
SINGLE = 1e-5
"""Of what goes through float32: kernels on a GPU, training."""
APART = frozenset(
    {"places", "seconds", "device", "seconds_per_step", "milliseconds_per_step", "checkpoint", "checkpoints"}
)
"""Where, how long, and under which name of a file."""


def assert_same(away: Any, home: Any, where: str = "", *, tolerance: float = TOLERANCE) -> None:
    """Compare two results or documents; tensors are to lie on CUDA and on the CPU, and are compared to their scale."""
    if isinstance(home, Tensor):
        assert (away.device.type, home.device.type) == ("cuda", "cpu"), where
        assert_close(away.cpu(), home, where, tolerance=tolerance)
    elif isinstance(home, Difference):
        assert_same(away.value, home.value, where, tolerance=tolerance)  # the place of the worst may be a tie
    elif dataclasses.is_dataclass(home):
        for field in dataclasses.fields(home):
            if field.name not in APART and field.name[0] != "_":
                one, other = (getattr(each, field.name) for each in (away, home))
                assert_same(one, other, f"{where}.{field.name}", tolerance=tolerance)
    elif isinstance(home, Mapping):
        assert away.keys() == home.keys(), where
        for key in home.keys() - APART:
            assert_same(away[key], home[key], f"{where}.{key}", tolerance=tolerance)
    elif where.endswith(".eigenvalues"):
        # In the order of their rates, of which many are equal but for rounding: a conjugate's, a HiPPO matrix's.
        assert len(away) == len(home), where
        for one, others in ((away, home), (home, away)):
            for point in one:
                assert any(point == pytest.approx(other, rel=tolerance, abs=tolerance) for other in others), where
    elif isinstance(home, Sequence) and not isinstance(home, str):
        assert len(away) == len(home), where
        for number, (one, other) in enumerate(zip(away, home, strict=True)):
            assert_same(one, other, f"{where}[{number}]", tolerance=tolerance)
    elif isinstance(home, float | complex) and cmath.isfinite(home):
        assert away == pytest.approx(home, rel=tolerance, abs=tolerance), where
    else:
        assert away == home or (away != away and home != home), where


def assert_close(away: Tensor, home: Tensor, where: str = "", *, tolerance: float = TOLERANCE) -> None:
    """Compare values, all of them to the largest one's scale."""
    assert (away.shape, away.dtype) == (home.shape, home.dtype), where
    finite = home.isfinite()
    assert torch.equal(away.isfinite(), finite), where
    if home.is_floating_point() or home.is_complex():
        scale = float(home[finite].abs().max()) if bool(finite.any()) else 1.0
        torch.testing.assert_close(away, home, rtol=0, atol=tolerance * scale, equal_nan=True, msg=lambda m: where + m)
    else:
        assert torch.equal(away, home), where
