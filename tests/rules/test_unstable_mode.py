"""SSM101: modes that grow."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.checkpoint.formats.llama_cpp import write_gguf
from tests.rules.planting import findings_of, plant

CODE = "SSM101"


def test_an_eigenvalue_that_crossed_the_axis_is_found(tmp_path: Path) -> None:
    """DSS's softmax version stores Λ itself: training can push its real part past 0."""

    def crossed(values: Tensor) -> Tensor:
        values[5, 0] = 0.3
        return values

    (finding,) = findings_of(CODE, plant(tmp_path, "dss", {"layers.1.kernel.Lambda": crossed}))
    assert (finding.severity, finding.layer, finding.count, finding.of) == ("error", "layers.1.kernel", 64, 64 * 32)
    assert finding.threshold == 1.0


def test_the_factor_is_that_by_which_the_stepped_state_grows(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    def crossed(values: Tensor) -> Tensor:
        values[5, 0] = 0.3
        return values

    path = plant(tmp_path, "dss", {"layers.1.kernel.Lambda": crossed})
    (finding,) = findings_of(CODE, path)
    state = load_file(path / "model.safetensors")
    longest = float(state["layers.1.kernel.log_dt"].double().exp().max())
    growth, steps = 1.0, 50
    for _ in range(steps):
        growth *= math.exp(0.3 * longest)
    assert finding.value == pytest.approx(growth ** (1 / steps), rel=1e-7)
    assert f"{finding.value:.6g}" in finding.message


def test_the_smallest_step_past_the_boundary_counts(tmp_path: Path) -> None:
    """A rate of −1e-12 per step is growth, and in float64's log-eigenvalues it is not lost."""

    def barely(values: Tensor) -> Tensor:
        values[0, 0] = 1e-30
        return values

    (finding, *_) = findings_of(CODE, plant(tmp_path, "dss", {"Lambda": barely}))
    assert finding.count == 64
    assert re.search(r"the fastest by \d(\.\d+)?e-3\d of its size$", finding.message)  # not "by a factor of 1"


@pytest.mark.parametrize("value", [0.0, -1e-12])
def test_modes_on_the_boundary_or_inside_do_not_grow(value: float, tmp_path: Path) -> None:
    def set_real_part(values: Tensor) -> Tensor:
        values[:, 0] = value
        return values

    assert not findings_of(CODE, plant(tmp_path, "dss", {"Lambda": set_real_part}))


def test_stablessms_shipped_start_is_unstable_and_said_to_be(tmp_path: Path) -> None:
    """All its configurations use `direct`, which starts at Re A = +0.5."""
    path = plant(
        tmp_path, "stablessm", {"log_A_real": lambda w: torch.full_like(w, 0.5)}, config={"parameterization": "direct"}
    )
    assert len(findings_of(CODE, path)) == 3


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_an_ssm_a_that_was_not_converted_is_a_fault_of_the_conversion(kind: str, tmp_path: Path) -> None:
    A_log = torch.arange(1, 17).float().log().repeat(8, 1) if kind == "mamba" else torch.rand(8, 1) * 2.7
    tensors = {"blk.0.ssm_a": A_log, "blk.0.ssm_dt.bias": torch.full((8,), -3.0), "blk.0.ssm_d": A_log[:, :1].clone()}
    if kind == "mamba":
        tensors |= {"blk.0.ssm_x.weight": torch.rand(34, 8), "blk.0.ssm_dt.weight": torch.rand(8, 2)}
        tensors["blk.0.ssm_d"] = torch.ones(8)
    for directory, values, advice in (("wrong", A_log, "convert the model again"), ("right", -A_log.exp(), None)):
        (tmp_path / directory).mkdir()
        path = write_gguf(tmp_path / directory / "m.gguf", tensors | {"blk.0.ssm_a": values})
        found = findings_of(CODE, path)
        assert [finding.advice.startswith(advice) for finding in found] == ([True] if advice else [])


def test_one_mode_of_an_ssm_a_that_crossed_is_one_of_training(tmp_path: Path) -> None:
    A = -torch.arange(1, 17).float().repeat(8, 1)
    A[3, 2] = 0.1
    path = write_gguf(
        tmp_path / "m.gguf",
        {
            "blk.0.ssm_a": A,
            "blk.0.ssm_dt.bias": torch.full((8,), -3.0),
            "blk.0.ssm_x.weight": torch.rand(34, 8),
            "blk.0.ssm_dt.weight": torch.rand(8, 2),
            "blk.0.ssm_d": torch.ones(8),
        },
    )
    (finding,) = findings_of(CODE, path)
    assert finding.advice.startswith("go back to a checkpoint")
