"""SSM303: packed and eight-bit tensors of a recurrence, and none of a projection."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.rules.healthy import initial_state, save
from tests.rules.planting import cast, fill, findings_of, plant

CODE = "SSM303"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=["int8", "uint8"])
def test_codes_in_place_of_a_rate_are_an_error_of_their_layer(tmp_path: Path, dtype: torch.dtype) -> None:
    path = plant(tmp_path, "mamba", {"1.mixer.A_log": lambda w: (w * 40).to(dtype)})
    (finding,) = findings_of(CODE, path)
    assert (finding.severity, finding.layer, finding.family) == ("error", "model.layers.1.mixer", "mamba")
    assert finding.tensor == "model.layers.1.mixer.A_log"
    assert str(dtype).removeprefix("torch.") in finding.message
    assert "its memory cannot be read" in finding.message


def test_scaled_float8_is_not_read_and_said(tmp_path: Path) -> None:
    state = initial_state("mamba2")
    name = "model.layers.2.mixer.dt_bias"
    state |= {name: state[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1)}
    (finding,) = findings_of(CODE, save(tmp_path / "planted", state, {}))
    assert (finding.layer, finding.tensor) == ("model.layers.2.mixer", name)


def test_unscaled_float8_is_read_and_said_all_the_same(tmp_path: Path) -> None:
    found = findings_of(CODE, plant(tmp_path, "mamba", {"A_log": cast(torch.float8_e4m3fn)}))
    assert len(found) == 3
    assert "A_log has eight bits or fewer (float8_e4m3fn)" in found[0].message
    # And how far it is off is SSM104's, once it is far: an outlier is.
    far = plant(tmp_path / "far", "mamba", {"0.mixer.A_log": lambda w: fill(-20.0, (0, 0))(w).to(torch.float8_e4m3fn)})
    (finding,) = findings_of("SSM104", far)
    assert (finding.severity, finding.count) == ("error", 1)


def test_several_tensors_are_counted(tmp_path: Path) -> None:
    changes = {"0.mixer.A_log": cast(torch.int8), "0.mixer.dt_proj.bias": cast(torch.int8)}
    (finding,) = findings_of(CODE, plant(tmp_path, "mamba", changes))
    assert finding.count == 2
    assert "and 1 more of its tensors are quantised" in finding.message


def test_packed_projections_leave_the_memory_alone(tmp_path: Path) -> None:
    changes = {"dt_proj.weight": cast(torch.int8), "x_proj.weight": cast(torch.float8_e4m3fn)}
    assert findings_of(CODE, plant(tmp_path, "mamba", changes)) == []


def test_a_layer_unread_for_another_reason_is_not_quantised(tmp_path: Path) -> None:
    path = plant(tmp_path, "mamba", {"1.mixer.dt_proj.bias": lambda w: w[:7], "dt_proj.weight": cast(torch.int8)})
    assert findings_of(CODE, path) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sixteen_bits_and_more_are_not_quantised(tmp_path: Path, dtype: torch.dtype) -> None:
    assert findings_of(CODE, plant(tmp_path, "mamba", {"A_log": cast(dtype)})) == []
