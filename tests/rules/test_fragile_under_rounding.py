"""SSM104: a cast that would make modes grow, or multiply their time constants, seen before it is made."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssmdiag.families.mapfile import read_map
from tests.rules.healthy import save
from tests.rules.planting import cast, fill, findings_of, plant

CODE = "SSM104"


def int8(values: torch.Tensor) -> torch.Tensor:
    """Return the values after a round trip through int8 with one scale, as a naive quantiser makes it."""
    scale = values.abs().max() / 127
    return (values / scale).round().clamp(-127, 127) * scale


def test_direct_rates_over_three_decades_do_not_survive_int8(tmp_path: Path) -> None:
    rates = -torch.logspace(-3, 0, 32)
    (finding,) = findings_of(CODE, plant(tmp_path, "s5", {"layers_0.seq.Lambda_re": lambda w: rates}))
    assert (finding.severity, finding.value, finding.tensor) == (
        "note",
        math.inf,
        "params.encoder.layers_0.seq.Lambda_re",
    )
    assert "a cast to int8 with one scale for the tensor can make" in finding.message
    after = int8(rates.double())
    broken = (after >= 0) | (rates / after > 2) | (after / rates > 2)
    assert 0 < int(broken.sum()) <= finding.count


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["s5", "mamba", "lru-long", "s4d-minimal", "mamba2", "rwkv7"])
def test_fresh_models_survive_every_cast(tmp_path: Path, name: str) -> None:
    assert findings_of(CODE, plant(tmp_path, name)) == []


def test_a_log_survives_int8(tmp_path: Path) -> None:
    # What the rule says of exp maps, done: every time constant stays within a few per cent.
    path = plant(tmp_path, "mamba")
    for name, values in load_file(path / "model.safetensors").items():
        if name.endswith("A_log"):
            ratio = (int8(values.double()) - values.double()).exp()
            assert float((ratio - 1).abs().max()) < 0.012
    assert findings_of(CODE, path) == []


def declared(tmp_path: Path, decay: torch.Tensor, map: str = "none") -> dict[str, object]:
    """Write a model that stores |λ̄| itself; return the arguments that read it."""
    (tmp_path / "map.toml").write_text(
        f'[[layer]]\nname = "leaky"\nweight = "*.cell.decay"\naxes = "channel"\nmap = "{map}"\ndomain = "discrete"\n'
    )
    path = save(tmp_path / "planted", {"net.0.cell.decay": decay}, {})
    return {"path": path, "families": read_map(tmp_path / "map.toml")}


def test_decays_stored_as_such_do_not_survive_16_bits(tmp_path: Path) -> None:
    decay = 1 - torch.logspace(-5, -1, 200)
    (finding,) = findings_of(CODE, **declared(tmp_path, decay))
    assert (finding.severity, finding.value) == ("note", math.inf)
    after = decay.to(torch.bfloat16)
    ratio = decay.double().log() / after.double().log()
    broken = (after == 1) | (ratio > 2) | (ratio < 0.5)
    assert int((after == 1).sum()) > 100
    assert int(broken.sum()) <= finding.count < len(decay)


def test_decays_stored_as_such_in_16_bits_are_an_error(tmp_path: Path) -> None:
    decay = torch.tensor([0.5, 0.9, 1 - 2**-8]).to(torch.bfloat16)
    (finding,) = findings_of(CODE, **declared(tmp_path, decay))
    assert (finding.severity, finding.count) == ("error", 1)
    # One unit below 1: what was rounded to it lies anywhere between half and one and a half units below.
    assert finding.value == pytest.approx(math.log1p(-(2**-8)) / math.log1p(-(2**-9)) - 1)


def test_rates_among_the_last_bits_of_float16_are_an_error(tmp_path: Path) -> None:
    smallest = torch.tensor(2.0**-24)
    values = -smallest * torch.arange(1, 33)
    (finding,) = findings_of(CODE, plant(tmp_path, "s5", {"layers_2.seq.Lambda_re": lambda w: values.half()}))
    assert (finding.severity, finding.layer) == ("error", "params.encoder.layers_2.seq")
    # β is half the smallest number, so S = β/(|w| − β) reaches 1 at the smallest alone.
    assert (finding.count, finding.value) == (1, 1.0)


def test_casts_of_exp_maps_to_bfloat16_are_no_news(tmp_path: Path) -> None:
    assert findings_of(CODE, plant(tmp_path, "mamba", {"A_log": cast(torch.bfloat16)})) == []


def test_one_outlier_costs_a_factor_in_bfloat16_and_everything_in_int8(tmp_path: Path) -> None:
    # Half a unit in the last place of bfloat16 at |w| in [512, 1024) is 2: e² − 1 > 1.
    path = plant(tmp_path, "lru-long", {"0.seq.nu_log": fill(-600.0, 0)})
    (finding,) = findings_of(CODE, path)
    assert (finding.severity, finding.count) == ("note", 64), "an outlier spoils the scale of them all"
    assert finding.value == pytest.approx(math.expm1(600 / 254), rel=1e-6), "int8 is the worst of the casts"
    assert "so can one to bfloat16" in finding.message


def test_fixed_decays_are_no_weights(tmp_path: Path) -> None:
    assert findings_of(CODE, plant(tmp_path, "minimax")) == []
