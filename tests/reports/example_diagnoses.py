"""Diagnoses made of plain numbers: every format must render every one of them."""

from __future__ import annotations

import math
from dataclasses import replace

from ssmdiag.assessment.memory import LayerDecay
from ssmdiag.assessment.spectrum import LayerDiagnosis
from ssmdiag.decay.decay import ChannelDecay, DecayStatus, Law
from ssmdiag.decay.tail import Tail, TailLaw, TailStatus
from ssmdiag.diagnosis import Alternative, Diagnosis
from ssmdiag.errors import Failure
from ssmdiag.recurrence.modal import Assumption
from ssmdiag.recurrence.quantiles import Quantiles
from ssmdiag.rules.finding import Finding

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
        rules=("SSM101", "SSM401"),
        device="cpu",
        seconds=0.4,
        ssmdiag_version="0.0",
        torch_version="0.0",
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def finding(number: int | None, *, code: str = "SSM101", value: float = 1.02, **fields: object) -> Finding:
    plain = Finding(
        code=code,
        rule="unstable-mode",
        severity="error",
        layer=None if number is None else f"backbone.layers.{number}.mixer",
        family="mamba",
        tensor=None if number is None else f"backbone.layers.{number}.mixer.A_log",
        count=12,
        of=81_920,
        value=value,
        threshold=1.0,
        message=f"12 of 81,920 modes grow with every step, the fastest by a factor of {value}",
        advice="go back to a checkpoint before it crossed",
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def remembering(plain: LayerDiagnosis, law: Law = Law.EXPONENTIAL) -> LayerDiagnosis:
    """Return the layer with a horizon of twice its slowest half-life, and a law."""
    assert plain.half_life is not None
    rate, lags = 1 / 144.0, [0.0, 1.0, *(2.0**k for k in range(1, 10))]
    whole = ChannelDecay(
        law, DecayStatus.FITTED, (0, 511), 1.0, None, None, rate, rate / 100, None, None, {law: 0.2, Law.TRUNCATED: 0.1}
    )
    decay = LayerDecay(
        counts={"exponential": 200, "polynomial": 0, "truncated": 50, "flat": 0, "undetermined": 6},
        whole=whole,
        sentence="Forgets exponentially, half gone every 100 steps, over lags 0 to 511 (0.2 dB rms off).",
        envelope=tuple((lag, -8.69 * rate * lag) for lag in lags),
        curves={law: tuple((lag, -8.69 * rate * lag) for lag in lags)},
        tail=Tail(TailLaw.EXPONENTIAL, 0, 511, rate, 1.0),
        tail_status=TailStatus.FOUND,
        tails={"exponential": 200, "exponentials": 50, "flat": 0, "none": 6},
        lags=(50.0, 166.0, 332.0),
        heaviness=1.0,
        slowest_rate=rate,
        exponents=((1, 10, 0.027), (10, 100, 0.27)),
    )
    horizon = Quantiles(*(2 * value for value in vars(plain.half_life).values()))
    return replace(plain, horizon=horizon, decay=decay)


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
    "findings": diagnosis(
        *(remembering(layer(i)) for i in range(4)),
        context_length=512,
        not_judged={"SSM501": "no optimiser's state is in or beside the file"},
        findings=(
            finding(1, value=1.02),
            finding(3, value=1.5),
            finding(
                None, code="SSM401", severity="warning", rule="non-finite", message="the whole file looks odd | <b>"
            ),
        ),
    ),
    "guess": diagnosis(
        layer(0),
        guess="a guess: layers are read through map.toml, which ssmdiag printed and nobody has reviewed; check every "
        "line of it, then set reviewed = true there",
        rules=("SSM101",),
        findings=(finding(0, value=1.02),),
    ),
    "failed": Failure("runs/gone.pt", "CheckpointError", "runs/gone.pt does not exist.", None, "did you mean done.pt?"),
}
