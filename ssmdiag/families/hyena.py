"""Hyena (Poli et al., 2023, arXiv 2302.10866) and HyenaDNA (2306.15794): a long filter given by a small network.

| symbol | tensor | shape | role |
|---|---|---|---|
| z | `pos_emb.z` | 1, lag, feature | t and sines of it |
| t | `pos_emb.t` | 1, lag, 1 | lag over the longest lag |
| f | `implicit_filter.{0, 2, …}.{weight, bias}` | – | linear layers |
| ω | `implicit_filter.{1, 3, …}.freq` | 1, width | sin(ωx) after each but the last, one for all |
| Δ | `modulation.deltas` | 1, 1, channel | window |
| D | `bias` | channel | skip |

K_t = f(z_t) (e^{−t abs(Δ)} + shift), and nothing after the last lag: a convolution of as many taps as z has lags.
`shift` is a setting: 0 in safari, 0.05 in HyenaDNA's own files. Of filters too long to hold, some channels are
evaluated.
HazyResearch/safari 02220c6, src/models/sequence/hyena.py:69 and 186; hyena-dna d553021, standalone_hyenadna.py:119.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling, Tensor

MOST_TAPS = 2**21
"""Values of a layer's kernel that are held: channels are left out beyond it, but never all but `FEWEST` of them."""
FEWEST = 4
LAGS_AT_A_TIME = 2**14
DEEPEST = 12
"""Most linear layers of a filter."""


def read(layer: Layer) -> Iterator[Recurrence]:
    import torch

    if str(layer.setting("bidirectional", default=False)).lower() == "true":
        raise LayerError(
            f"{layer.title}: Hyena filters of two directions are not read.", expected="bidirectional: false"
        )
    features, times = layer["pos_emb.z"][0], layer["pos_emb.t"][0, :, 0]
    weights, frequency = _network(layer)
    window, shift = layer["modulation.deltas"].abs().flatten(), _window(layer)
    lags, channels = len(features), len(window)
    kept = min(channels, max(FEWEST, MOST_TAPS // lags))
    some = torch.linspace(0, channels - 1, kept, dtype=torch.float64, device=window.device).round().long()
    if kept < channels:
        layer.note(f"{kept:,} of {channels:,} channels are evaluated, evenly spaced: a kernel has {lags:,} taps")
    normalised = str(layer.setting("normalized", default=False)).lower() == "true"
    parts = []
    for start in range(0, lags, LAGS_AT_A_TIME):
        chunk = slice(start, start + LAGS_AT_A_TIME)
        values = features[chunk]
        for number, (weight, bias) in enumerate(weights):
            values = (values if number == 0 else (frequency * values).sin()) @ weight.mT + bias
        if shift is not None:
            values = values * ((-times[chunk, None] * window).exp() + shift)
        if normalised:
            values = values / values.abs().sum(1, keepdim=True)
        parts.append(values[:, some])
    taps = torch.cat(parts).mT.contiguous()
    if shift is not None:
        _note_window(layer, window, times)
    yield layer.convolution(taps[None])


def _network(layer: Layer) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return weight and bias of every linear layer, and the frequency of the sines between them."""
    names = [f"implicit_filter.{2 * depth}" for depth in range(DEEPEST)]
    weights = []
    for name in names:
        if f"{name}.weight" not in layer:
            break
        weight = layer[f"{name}.weight"]
        weights.append((weight, layer[f"{name}.bias"] if f"{name}.bias" in layer else weight.new_zeros(len(weight))))
    channels, last = layer.axis("channel"), len(weights[-1][0])
    if last != channels or sum(f"{name}.weight" in layer for name in names) > len(weights):
        raise LayerError(
            f"{layer.title}: a layer of its filter is missing: the last one before has {last} outputs, of {channels}.",
            expected="implicit_filter.0, .2, .4 … up to one of as many outputs as channels",
        )
    sines = [name for name in (f"implicit_filter.{2 * depth + 1}.freq" for depth in range(DEEPEST)) if name in layer]
    if len(weights) > 1 and not sines:
        raise LayerError(f"{layer.title}: the frequency of its sines is not stored.", expected="implicit_filter.1.freq")
    frequency = layer[sines[0]] if sines else weights[0][0].new_ones(1, 1)
    _require_chain(layer, weights, layer.axis("feature"))
    hidden = {len(weight) for weight, _ in weights[:-1]}
    if hidden and (frequency.ndim != 2 or len(frequency) != 1 or not hidden <= {frequency.shape[1]}):
        raise LayerError(
            f"{layer.names[sines[0]]} has shape {tuple(frequency.shape)}, and the layers between which its sines stand "
            f"have {' and '.join(map(str, sorted(hidden)))} outputs.",
            expected="1 × as many",
        )
    return weights, frequency


def _require_chain(layer: Layer, weights: list[tuple[Tensor, Tensor]], width: int) -> None:
    """Raise LayerError for a linear layer that does not fit the one before it, or a bias that does not fit its own."""
    for depth, (weight, bias) in enumerate(weights):
        name = f"implicit_filter.{2 * depth}"
        shape = tuple(weight.shape)
        if shape[1:] != (width,):
            raise LayerError(
                f"{layer.names[f'{name}.weight']} has shape {shape}: the tensors do not belong together.",
                expected=f"outputs × {width}, {'the features' if depth == 0 else 'the outputs of the layer before'}",
            )
        if bias.shape != shape[:1]:
            raise LayerError(
                f"{layer.names[f'{name}.bias']} has shape {tuple(bias.shape)}, but its weight {shape}: the tensors do "
                "not belong together.",
                expected=f"({shape[0]},)",
            )
        width = shape[0]


def _window(layer: Layer) -> float | None:
    """Return the shift of the window, None where there is no window, and note where nothing says it."""
    if str(layer.setting("modulate", default=True)).lower() == "false":
        return None
    own = str(layer.setting("model_type", default="")).lower() == "hyenadna"
    value = layer.option("shift", known="0.05" if own and layer.setting("shift", "modulation_shift") is None else None)
    (assumption,) = (one for one in layer.assumptions if one.option == "shift")
    if assumption.source == "usual":
        layer.note(
            f"assumed: shift = {value} ({assumption.meaning}); nothing in the file says. HyenaDNA's own files have "
            "0.05: set it with --assume shift=…"
        )
    return float(value)


def _note_window(layer: Layer, window: Tensor, times: Tensor) -> None:
    """Note how fast the window falls, which is all that the deltas say."""
    nats = float(times[-1]) / max(1, len(times) - 1)
    slowest, fastest = (float(rate) * nats for rate in window.aminmax())
    fast, slow = (math.log(2) / rate if rate > 0 else math.inf for rate in (fastest, slowest))
    layer.note(f"its window alone falls to half in {fast:,.3g} to {slow:,.3g} steps")


_LINEAR = {f"implicit_filter.{2 * depth}.weight": "_ _" for depth in range(1, DEEPEST)}
_BIAS = {f"implicit_filter.{2 * depth}.bias": "_" for depth in range(DEEPEST)}
_SINES = {f"implicit_filter.{2 * depth + 1}.freq": "1 _" for depth in range(DEEPEST)}

FAMILY = Family(
    name="hyena",
    title="Hyena",
    paper="arXiv 2302.10866",
    memory="exact",
    spellings=(
        Spelling(
            "HazyResearch/safari, HyenaDNA",
            {
                "modulation.deltas": "1 1 channel",
                "implicit_filter.0.weight": "_ feature",
                "pos_emb.z": "1 lag feature",
                "pos_emb.t": "1 lag 1",
            },
            {**_LINEAR, **_BIAS, **_SINES, "bias": "channel"},
        ),
    ),
    repositories=("HazyResearch/safari",),
    read=read,
    options=(
        Option(
            "shift",
            ("0", "0.05"),
            "0",
            "what the window keeps of every lag",
            ("modulation_shift",),
            number=True,
        ),
    ),
)
