"""SSM301: what 16 bits cost a time constant, against the same model before the cast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssmdiag.diagnosis import extract_recurrences
from tests.rules.planting import Change, cast, fill, findings_of, plant

CODE = "SSM301"
STORED = {
    "mamba": ("A_log", "dt_proj.bias"),
    "mamba2": ("A_log", "dt_bias"),
    "gated-deltanet": ("A_log", "dt_bias"),
    "kda": ("A_log", "dt_bias"),
    "s4d-minimal": ("kernel.log_A_real", "kernel.log_dt"),
    "s5": ("Lambda_re", "log_step"),
    "lru": ("nu_log",),
    "rwkv4": ("time_decay",),
    "rwkv7": ("w0",),
    "mlstm": ("fgate.bias",),
    "rg-lru": ("recurrent_param",),
    "retnet": ("decay",),
}


@pytest.mark.one_in(9)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", STORED)
def test_no_time_constant_is_further_off_than_said(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    for tensor in STORED[name]:
        # Some initial values, such as S5's −1/2, are exact in 16 bits.
        whole = extract_recurrences(plant(tmp_path / "whole" / tensor, name, {tensor: lambda w: 1.0173 * w}))
        path = plant(tmp_path / "cast" / tensor, name, {tensor: lambda w: (1.0173 * w).to(dtype)})
        found = {finding.layer: finding for finding in findings_of(CODE, path)}
        for before, after in zip(whole, extract_recurrences(path), strict=True):
            error = float((after.time_constant / before.time_constant - 1).abs().max())
            finding = found[after.layer]
            assert finding.severity == "warning"
            assert finding.tensor.endswith(tensor)
            assert 0.05 * finding.value < error <= finding.value * (1 + 1e-6)


def test_full_precision_is_no_finding(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float64):
        changes: dict[str, Change] = {"A_log": cast(dtype), "dt_bias": cast(dtype)}
        assert findings_of(CODE, plant(tmp_path / str(dtype), "mamba2", changes)) == []


def test_projections_in_16_bits_are_no_finding(tmp_path: Path) -> None:
    changes = {"D": cast(torch.bfloat16), "dt_proj.weight": cast(torch.bfloat16)}
    assert findings_of(CODE, plant(tmp_path, "mamba", changes)) == []


def test_one_finding_a_layer_names_both_tensors(tmp_path: Path) -> None:
    found = findings_of(
        CODE, plant(tmp_path, "mamba", {"A_log": cast(torch.bfloat16), "dt_proj.bias": cast(torch.bfloat16)})
    )
    assert len(found) == 3
    assert found[0].message == (
        "A_log and dt_proj.bias are stored as bfloat16: rounding may have moved time constants by up to 0.78 and 1.6 % "
        "(median 0.78 and 1.6 %)"
    )
    assert found[0].count == 256 * 16 + 256


def test_a_gate_far_from_zero_is_an_error(tmp_path: Path) -> None:
    path = plant(tmp_path, "lru", {"0.seq.nu_log": lambda w: fill(-33.0, 0)(w).to(torch.bfloat16)})
    (finding,) = findings_of(CODE, path)
    assert finding.severity == "error"  # half a unit at |w| in [32, 64) is 1/8, and e^(1/8) − 1 = 13 %
    assert finding.value == pytest.approx(0.1331, abs=1e-4)


def test_a_stored_decay_in_16_bits_is_an_error_however_short(tmp_path: Path) -> None:
    from ssmdiag.families.mapfile import read_map
    from tests.rules.healthy import save

    (tmp_path / "map.toml").write_text(
        '[[layer]]\nname = "leaky"\nweight = "*.cell.decay"\naxes = "channel"\nmap = "none"\ndomain = "discrete"\n'
    )
    path = save(tmp_path / "planted", {"net.0.cell.decay": torch.tensor([0.3, 0.5]).to(torch.bfloat16)}, {})
    (finding,) = findings_of(CODE, path, families=read_map(tmp_path / "map.toml"))
    assert finding.severity == "error"
    assert "decay is stored as bfloat16, the decay itself" in finding.message


def test_zeros_lose_nothing(tmp_path: Path) -> None:
    changes = {"0.attn.gk_proj.1.bias": lambda w: fill(0.0)(w).to(torch.bfloat16)}
    assert findings_of(CODE, plant(tmp_path, "gla", changes)) == []
