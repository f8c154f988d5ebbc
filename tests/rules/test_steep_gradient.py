"""SSM105: the gradient scale it reports is the one autograd finds by stepping the recurrence."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssmdiag.recurrence.maps import MAPS
from tests.rules.planting import fill, findings_of, plant

CODE = "SSM105"
LOW = {"scale": 3e3}
"""A threshold that modes reach whose memory can be stepped through in a moment."""


def stepped_scale(decay: Callable[[Tensor], Tensor], weight: float, context: int) -> float:
    """Return |∂/∂w Σ_{t<T} λ̄^t|: how the memory of one mode, over the context, moves with its weight."""
    w = torch.tensor(weight, dtype=torch.float64, requires_grad=True)
    lags = torch.arange(context, dtype=torch.float64)
    decay(w).pow(lags).sum().backward()
    return abs(float(w.grad))


def test_the_scale_of_a_direct_rate_is_what_autograd_finds(tmp_path: Path) -> None:
    rate, step, context = 1e-4, 0.01, 1_000_000
    changes = {"layers_0.seq.Lambda_re": fill(-rate, 7), "layers_0.seq.log_step": fill(math.log(step), 7)}
    (finding,) = findings_of(CODE, plant(tmp_path, "s5", changes), context_length=context)
    wanted = stepped_scale(lambda w: (step * w).exp(), -rate, context)
    assert finding.value == pytest.approx(wanted, rel=1e-5)
    assert (finding.severity, finding.count, finding.of) == ("warning", 1, 32)
    assert finding.layer == "params.encoder.layers_0.seq"


def test_the_other_maps_it_names_have_the_scale_it_says(tmp_path: Path) -> None:
    rate, step = 1e-3, 0.1
    changes = {"layers_0.seq.Lambda_re": fill(-rate, 7), "layers_0.seq.log_step": fill(math.log(step), 7)}
    (finding, *_) = findings_of(CODE, plant(tmp_path, "s5", changes), thresholds=LOW)
    tau = 1 / (rate * step)
    assert finding.value == pytest.approx(tau**2 * step)
    best = stepped_scale(lambda w: (-MAPS["best"](w)).exp(), math.sqrt(tau - 0.5), 400_000)
    assert f"{best:,.0f} under best" in finding.message
    assert "1 under heavy-tail" in finding.message
    assert "time constant 10,000 steps" in finding.message


def test_a_context_that_ends_first_limits_the_scale(tmp_path: Path) -> None:
    path = plant(tmp_path, "lru-long", {"0.seq.nu_log": fill(-11.0, 3)}, config={})
    (finding,) = findings_of(CODE, path, thresholds=LOW)
    assert finding.value == pytest.approx(math.exp(11.0))
    # Under exp the gradient fades again once the mode outlasts the context: Σ_{t<T} r t e^{−rt} ≤ 0.3 T.
    assert findings_of(CODE, path, context_length=10_000, thresholds=LOW) == []
    (seen,) = findings_of(CODE, path, context_length=100_000, thresholds=LOW)
    assert seen.value == pytest.approx(stepped_scale(lambda w: (-w.exp()).exp(), -11.0, 100_000), rel=1e-3)


def test_a_stored_decay_next_to_one_is_as_steep_as_theorem_3_6_says(tmp_path: Path) -> None:
    from ssmdiag.families.mapfile import read_map
    from tests.rules.healthy import save

    (tmp_path / "map.toml").write_text(
        '[[layer]]\nname = "leaky"\nweight = "*.cell.decay"\naxes = "channel"\nmap = "none"\ndomain = "discrete"\n'
    )
    decay = torch.tensor([0.5, 0.9, 1 - 1e-4], dtype=torch.float64)
    path = save(tmp_path / "planted", {"net.0.cell.decay": decay}, {})
    (finding,) = findings_of(CODE, path, families=read_map(tmp_path / "map.toml"))
    assert finding.value == pytest.approx(1 / (1 - 0.9999) ** 2, rel=1e-3)


def test_selective_models_get_a_note(tmp_path: Path) -> None:
    (finding,) = findings_of(CODE, plant(tmp_path, "mamba2", {"0.mixer.A_log": fill(-14.0, 2)}, config={}))
    assert finding.severity == "note"


@pytest.mark.one_in(8)
@pytest.mark.parametrize("name", ["mamba", "s5", "s4d-minimal", "lru-long", "dss", "annotated-s4d", "stablessm", "s4"])
@pytest.mark.parametrize("context", [None, 1024, 1_000_000])
def test_fresh_models_are_gentle_at_every_context(tmp_path: Path, name: str, context: int | None) -> None:
    assert findings_of(CODE, plant(tmp_path, name, config={}), context_length=context) == []


def test_heavy_tail_makes_no_steep_gradient_of_any_time_constant(tmp_path: Path) -> None:
    from ssmdiag.families.mapfile import read_map
    from tests.rules.healthy import save

    (tmp_path / "map.toml").write_text(
        '[[layer]]\nname = "leaky"\nweight = "*.cell.rate"\naxes = "channel"\nmap = "heavy-tail"\ndomain = "rate"\n'
    )
    path = save(tmp_path / "planted", {"net.0.cell.rate": -torch.logspace(0, 12, 50)}, {})
    assert findings_of(CODE, path, families=read_map(tmp_path / "map.toml")) == []


def test_thresholds_move_where_it_speaks(tmp_path: Path) -> None:
    path = plant(tmp_path, "s4d-minimal", config={})
    assert len(findings_of(CODE, path, thresholds={"scale": 100.0})) == 3
    whole = findings_of(CODE, path, thresholds={"scale": 100.0, "slowest": 1.0})
    few = findings_of(CODE, path, thresholds={"scale": 100.0})
    assert all(f.value < g.value for f, g in zip(whole, few, strict=True)), "the median over all modes is smaller"
