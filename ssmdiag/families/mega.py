"""Mega's moving average (Ma et al., 2022, arXiv 2209.10655): damped real exponentials per channel.

| paper | fairseq, S4's EMAKernel | transformers | shape | role |
|---|---|---|---|---|
| α | `delta` | `damping_factor` | row, mode, 1 | p = σ(w), the input weight |
| δ | `alpha` | `decay_factor` | row, mode, 1 | σ(w), how much of p is forgotten |
| β | `beta` | `ema_expansion_matrix` | row, mode, 1 | input |
| η | `gamma` | `kernel_projection_matrix` | row, mode | output, times √(1/modes) |
| ω | `omega` | `residual_weight` | channel | skip; the other block's `D` in EMAKernel |

λ = 1 − σ(δ)σ(α), K_t = Σ_n pβ η √(1/N) λ^t. Rows are channels, twice as many if bidirectional, first half
forward. EMAKernel has a row per copy and channel; with `efficient_bidirectional` its copies share λ, with
`dt_tie` the modes share δ.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling
from ssmdiag.recurrence.discretisation import as_complex

_TRANSFORMERS = {
    "delta": "damping_factor",
    "alpha": "decay_factor",
    "beta": "ema_expansion_matrix",
    "gamma": "kernel_projection_matrix",
}


def read(layer: Layer) -> Iterator[Recurrence]:
    name = {key: key if key in layer else other for key, other in _TRANSFORMERS.items()}
    rows, modes = layer.shape(name["alpha"])[:2]
    outputs = layer.shape(name["gamma"])[0]
    halves = _directions(layer, outputs)
    if outputs % rows or layer.shape(name["delta"])[1] not in (1, modes):
        raise LayerError(
            f"{layer.title}: {outputs} rows of {name['gamma']} on {rows} rows of {name['alpha']}.",
            expected="as many, or a multiple",
        )
    for half in range(halves):
        bench = layer.again() if half else layer
        # Output rows beyond the number of decay rows are further copies with the same decays.
        own = slice(half * rows // halves, (half + 1) * rows // halves) if outputs == rows else slice(None)
        weight = bench.weight(name["delta"], "sigmoid", "step", bench[name["delta"]][own, :, 0])
        share = bench.weight(name["alpha"], "sigmoid", "rate", bench[name["alpha"]][own, :, 0])
        gamma = bench[name["gamma"]].chunk(halves)[half]
        truncation = bench.setting("truncation")
        if isinstance(truncation, int):
            bench.note(f"the kernel is cut off after {truncation:,} lags")
        yield bench.recurrence(
            (-(weight * share)).log1p(),
            branch=("forward", "backward")[half] if halves > 1 else "",
            input_matrix=as_complex(weight * bench[name["beta"]][own, :, 0]),
            output_matrix=as_complex(gamma * modes**-0.5).reshape(-1, len(share), modes),
        )


def _directions(layer: Layer, rows: int) -> int:
    """Return 2 where a kernel for each direction is stored, else 1."""
    if "channel" in layer.axes:
        single = layer.axes["channel"]
    else:
        skip = layer.beside("^.D")
        if skip is None or len(skip.shape) != 2:
            layer.note("the block's D is missing beside the kernel: two directions would be read as one")
            return 1
        single = skip.shape[0] * skip.shape[1]
    if rows not in (single, 2 * single):
        raise LayerError(f"{layer.title}: {rows} rows of outputs for {single}.", expected="as many or twice as many")
    return rows // single


_AXES = ("row mode 1", "row mode 1", "row mode 1", "row mode")

FAMILY = Family(
    name="mega",
    title="Mega",
    paper="arXiv 2209.10655",
    memory="exact",
    traits=frozenset({"attention inside"}),
    spellings=(
        Spelling("facebookresearch/mega", dict(zip(_TRANSFORMERS, _AXES, strict=True)) | {"omega": "channel"}),
        Spelling(
            "transformers, mega",
            dict(zip(_TRANSFORMERS.values(), _AXES, strict=True)) | {"residual_weight": "channel"},
        ),
        Spelling(
            "state-spaces/s4, EMAKernel",
            {"delta": "row _ 1", "alpha": "row mode 1", "beta": "row mode 1", "gamma": "_ mode"},
            absent=("omega",),
        ),
    ),
    repositories=(
        "facebookresearch/mega",
        "state-spaces/s4",
    ),
    read=read,
)
