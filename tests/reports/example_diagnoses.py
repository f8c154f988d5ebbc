"""Diagnoses made of plain numbers: every format must render every one of them."""

from __future__ import annotations

import math
from dataclasses import replace

from ssmdiag.diagnosis import Alternative, Diagnosis
from ssmdiag.recurrence import Assumption
from ssmdiag.reports import Failure
from ssmdiag.spectrum import LayerDiagnosis, Quantiles

BINS = 36


def layer(number: int, *, half_life: float = 100.0, spread: float = 10.0, complex_: bool = False) -> LayerDiagnosis:
    tau = half_life / math.log(2)
    histogram = [0] * BINS
    middle = int((math.log10(tau) + 1) * 4)
    for offset, count in ((-2, 5), (-1, 20), (0, 60), (1, 20), (2, 5)):
        histogram[min(max(middle + offset, 0), BINS - 1)] += count
    quantiles = Quantiles(tau / spread, tau / spread**0.8, tau, tau * spread**0.8, tau * spread)
    rates = [1 / tau * spread ** (1 - 2 * k / 15) for k in range(16)][::-1]
    return LayerDiagnosis(
        name=f"backbone.layers.{number}.mixer",
        family="s4d" if complex_ else "mamba",
        title="S4D" if complex_ else "Mamba-1",
        spelling="somebody's files",
        time_invariant=complex_,
        operating_point=None if complex_ else "the gates at their bias",
        channels=5120,
        modes=16,
        dtype="float32",
        rate=Quantiles(*(1 / v for v in (quantiles.max, quantiles.p95, tau, quantiles.p05, quantiles.min))),
        half_life=Quantiles(*(math.log(2) * v for v in vars(quantiles).values())),
        time_constant=quantiles,
        spectral_radius=math.exp(-1 / quantiles.max),
        margin=-math.expm1(-1 / quantiles.max),
        nonfinite=0,
        unstable=0,
        marginal=0,
        histogram=tuple(histogram),
        eigenvalues=tuple((rate, 0.3 * k if complex_ else 0.0) for k, rate in enumerate(rates)),
        assumptions=(),
        notes=(),
        tensors=(f"backbone.layers.{number}.mixer.A_log",),
    )


def diagnosis(*layers: LayerDiagnosis, **fields: object) -> Diagnosis:
    plain = Diagnosis(
        path="runs/model.safetensors",
        format="safetensors",
        size=5_536_000_000,
        bytes_read=22_300_000,
        train_step=None,
        context_length=None,
        layers=layers,
        alternatives=(),
        problems=(),
        notes=(),
        unrecognised=(),
        findings=(),
        device="cpu",
        seconds=0.4,
        ssmdiag_version="0.0",
        torch_version="0.0",
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


_MAP = Assumption("parameterization", "exp", "usual", "the map from the weight to Re A", ("exp", "best", "direct"))

CASES: dict[str, Diagnosis | Failure] = {
    "one-exact-layer": diagnosis(layer(0, complex_=True), context_length=4096, train_step=2000),
    "sixty-four-alike": diagnosis(*(layer(i, half_life=50 * 1.001**i) for i in range(64)), context_length=2048),
    "sixty-four-different": diagnosis(*(layer(i, half_life=2 * 1.2**i) for i in range(64))),
    "hybrid": diagnosis(*(layer(i, half_life=30, complex_=i % 2 == 0) for i in range(6)), context_length=32_768),
    "unstable": diagnosis(
        layer(0), replace(layer(1), unstable=12, margin=-0.0201, spectral_radius=1.0201), layer(2), context_length=1024
    ),
    "on-the-boundary": diagnosis(
        replace(
            layer(0),
            marginal=3,
            margin=0.0,
            spectral_radius=1.0,
            half_life=Quantiles(1.0, 2.0, 3.0, 4.0, math.inf),
            time_constant=Quantiles(1.4, 2.9, 4.3, 5.8, math.inf),
        )
    ),
    "nothing-finite": diagnosis(
        replace(
            layer(0),
            rate=None,
            half_life=None,
            time_constant=None,
            margin=None,
            spectral_radius=None,
            nonfinite=81_920,
            histogram=(0,) * BINS,
            eigenvalues=(),
        )
    ),
    "partly-read": diagnosis(
        layer(0),
        replace(layer(1), nonfinite=1),
        problems=("shard model-00002-of-00002.safetensors is missing (12 tensors)",),
        notes=("config.json is not readable; settings are unknown",),
        unrecognised=("encoder.blöck.A_log", "decoder.[red]log_dt[/red]"),
    ),
    "assumed": diagnosis(
        layer(0, complex_=True),
        alternatives=(Alternative(_MAP, 1, "backbone.layers.0.mixer", 693.0, (("best", 1200.0), ("direct", None))),),
    ),
    "failed": Failure("runs/gone.pt", "CheckpointError", "runs/gone.pt does not exist.", None, "did you mean done.pt?"),
}
