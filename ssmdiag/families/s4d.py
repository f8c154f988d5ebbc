"""S4D (Gu et al., 2022, arXiv 2206.11893) in all its spellings, H3's diagonal SSM among them.

| paper | v4 | v3, H3 | minimal | shape | role |
|---|---|---|---|---|---|
| Re A | `A_real` | `inv_A_real` | `log_A_real` | ssm, mode | Re A = −f(w) |
| Im A | `A_imag` | `A_imag` | `A_imag` | ssm, mode | v4: −f(w), else +w; one of each conjugate pair |
| Δ | `inv_dt` | `log_dt` | `log_dt` | channel(, 1 or mode) | v4: f(w), else exp(w) |
| B | `B` | `B` | – | (1,) ssm, mode(, 2) | minimal: B ≡ 1 |
| C | `C` | `C` | `C` | (copy,) channel, mode(, 2) | output |

ZOH (v4, minimal): K_t = 2 Re Σ_n C_n B_n (λ̄_n − 1)/A_n λ̄_n^t. Bilinear (v3, H3): B̄ = BΔ/(1 − ΔA/2).
v4's real variant has the factor 2 too. Channel h uses copy h mod S of the S tensors A and B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ssmdiag.errors import LayerError
from ssmdiag.families.dss import softmax_gain
from ssmdiag.families.forward import BIDIRECTIONAL
from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling, Tensor
from ssmdiag.recurrence.discretisation import bilinear, bilinear_gain, zoh, zoh_gain

TRANSFORMS = ("exp", "none", "relu", "sigmoid", "softplus")

TRANSFORM_OPTIONS = (
    Option("real_transform", TRANSFORMS, "exp", "f in Re A = −f(w)", ("real_type",)),
    Option("imag_transform", TRANSFORMS, "none", "f in Im A = −f(w)"),
    Option("dt_transform", TRANSFORMS, "exp", "f in Δ = f(w): exp in the code, softplus in the repository's configs"),
    Option("dt_fast", ("false", "true"), "false", "whether w passes through sinh before f makes it Δ"),
)
"""Options of the kernels of state-spaces/s4. v3 has only the first, under the name `real_type`."""


def read(layer: Layer) -> Iterator[Recurrence]:
    if "kernel.log_A_real" in layer:
        yield read_minimal(layer, "exp")
    elif "A_real" in layer:
        yield _diagonal(layer, read_eigenvalues(layer), read_step(layer), disc="zoh")
    else:
        yield _read_v3(layer, _H3 if f"{_H3}inv_A_real" in layer else "")


def read_minimal(layer: Layer, real: str) -> Recurrence:
    """Return the recurrence of `S4DKernel` with the map `real` on its real parts."""
    rate = layer.weight("kernel.log_A_real", real)
    frequency = layer.weight("kernel.A_imag", "none", role="frequency")
    step = layer.weight("kernel.log_dt", "exp", role="step")[:, None]
    eigenvalues = -rate + 1j * frequency
    return layer.recurrence(
        zoh(eigenvalues, step),
        step=step,
        conjugate_pairs=True,
        kernel_factor=2.0,
        input_matrix=zoh_gain(eigenvalues, step),
        output_matrix=layer.complex("kernel.C")[None],
    )


def read_eigenvalues(layer: Layer) -> Tensor:
    """Return v4's A per unit time, (ssm, mode)."""
    eigenvalues = -layer.weight("A_real", _transform(layer, "real_transform"))
    if "A_imag" in layer:
        return eigenvalues - 1j * layer.weight("A_imag", _transform(layer, "imag_transform"), role="frequency")
    return eigenvalues


def read_step(layer: Layer) -> Tensor:
    """Return v4's Δ, (channel, 1), or (channel, mode) where `dt_tie` was off."""
    modes = layer.axes.get("mode", 1)
    if layer.shape("inv_dt")[1] not in (1, modes):
        raise LayerError(
            f"{layer.names['inv_dt']} has shape {layer.shape('inv_dt')}.", expected=f"a last axis of 1 or {modes} modes"
        )
    map, fast = _transform(layer, "dt_transform"), layer.option("dt_fast") == "true"
    return layer.weight("inv_dt", map, role="step", part=layer["inv_dt"].sinh() if fast else None)


def tile(layer: Layer, values: Tensor, channels: int) -> Tensor:
    """Return (channel, …) from (ssm, …): channel h uses copy h mod S."""
    copies = values.shape[0]
    if channels % copies:
        raise LayerError(f"{layer.title}: {channels} channels cannot share {copies} copies of A and B.")
    return values.repeat(channels // copies, *(1,) * (values.ndim - 1))


def band(layer: Layer, frequency: Tensor) -> Tensor:
    """Return S4ND's mask on C, (channel, mode), from Im ΔA: 1 in the band, 0 past half the limit."""
    limit = layer.setting("bandlimit")
    if not isinstance(limit, (int, float)):
        return frequency.new_ones(())
    inside = frequency.abs() / (2 * math.pi) < limit / 2
    layer.note(f"bandlimit {limit}: {int((~inside).sum())} of {inside.numel()} modes do not reach the output")
    return inside.double()


def note_direction(layer: Layer) -> None:
    """Add a note where the settings say that the layer also reads the sequence backwards."""
    if layer.setting("bidirectional") is True:
        layer.note("bidirectional: the second half of the copies of C reads the reversed sequence")


def _read_v3(layer: Layer, prefix: str) -> Recurrence:
    rate = layer.weight(f"{prefix}inv_A_real", _transform(layer, "real_transform"))
    frequency = layer.weight(f"{prefix}A_imag", "none", role="frequency")
    if "inv_dt" in layer:  # the converter to v4 negates A_imag but does not rename inv_A_real
        frequency, step = -frequency, layer.weight("inv_dt", "exp", role="step")
    else:
        step = layer.weight(f"{prefix}log_dt", "exp", role="step")[:, None]
    if prefix:
        layer.note("H3 multiplies this memory's input by a shift SSM's output; the shift has finite memory, not shown")
    if layer.setting("force_real"):
        frequency = 0 * frequency
    return _diagonal(layer, -rate + 1j * frequency, step, disc="bilinear", prefix=prefix)


def _diagonal(layer: Layer, eigenvalues: Tensor, step: Tensor, *, disc: str, prefix: str = "") -> Recurrence:
    """Return the discretised recurrence of a diagonal A (ssm, mode); `disc` is the version's default."""
    note_direction(layer)
    channels = step.shape[0]
    is_complex = eigenvalues.is_complex()
    b, c = (layer.complex(f"{prefix}{x}") if is_complex else layer[f"{prefix}{x}"] for x in "BC")
    a = tile(layer, eigenvalues, channels) + 0j
    b = tile(layer, b.reshape(eigenvalues.shape), channels)
    if is_complex:
        c = c * band(layer, a.imag * step)
    disc = layer.option("disc", usual=disc)
    if disc == "dss":
        gain = softmax_gain(layer, a, zoh(a, step))
    else:
        gain = bilinear_gain(a, step) if disc == "bilinear" else zoh_gain(a, step)
    return layer.recurrence(
        (bilinear if disc == "bilinear" else zoh)(a, step),
        step=step,
        conjugate_pairs=is_complex,
        kernel_factor=1.0 if disc == "dss" else 2.0,
        input_matrix=None if gain is None else b * gain,
        output_matrix=c + 0j,
    )


def _transform(layer: Layer, option: str) -> str:
    name = layer.option(option)
    return "relu+1e-4" if name == "relu" else name


MINIMAL = {
    "kernel.log_A_real": "channel mode",
    "kernel.A_imag": "channel mode",
    "kernel.log_dt": "channel",
    "kernel.C": "channel mode 2",
}
"""Tensors of `S4DKernel`."""
_H3 = "kernel.kernel."
_V4 = {"A_real": "ssm mode", "inv_dt": "channel _"}
_V3 = {"inv_A_real": "ssm mode", "A_imag": "ssm mode", "B": "ssm mode 2", "C": "copy channel mode 2"}
_STALE = {"A": "ssm mode 2"}  # v3 copied inv_A_real and A_imag from it; unused

FAMILY = Family(
    name="s4d",
    title="S4D",
    paper="arXiv 2206.11893",
    memory="exact",
    traits=frozenset({"slow recurrence"}),
    spellings=(
        Spelling(
            "state-spaces/s4 v4, SSMKernelDiag",
            _V4 | {"A_imag": "ssm mode", "B": "1 ssm mode 2", "C": "copy channel mode 2"},
            absent=("P",),
        ),
        Spelling(
            "state-spaces/s4 v4, SSMKernelDiag, real",
            _V4 | {"B": "1 ssm mode", "C": "copy channel mode"},
            absent=("P", "A_imag"),
        ),
        Spelling("state-spaces/s4 v3, SSKernelDiag", _V3 | {"log_dt": "channel"}, _STALE),
        Spelling("state-spaces/s4 v3, half converted to v4", _V3 | {"inv_dt": "channel 1"}, _STALE),
        Spelling(
            "HazyResearch/H3",
            {f"{_H3}{name}": axes for name, axes in (_V3 | {"log_dt": "channel"}).items()}
            | {"ssm_k_kernel.kernel.C": "_ _ _"},
        ),
        Spelling(
            "state-spaces/s4, models/s4/s4d.py",
            MINIMAL,
            absent=("kernel.B", "kernel.P"),
            path=r"^(?!.*stablessm_layers)",  # StableSSM: the same tensors under other maps
        ),
    ),
    repositories=(
        "state-spaces/s4",
        "HazyResearch/H3",
    ),
    read=read,
    forward=(BIDIRECTIONAL,),
    options=(
        *TRANSFORM_OPTIONS,
        Option("disc", ("zoh", "bilinear", "dss"), "zoh", "how A and B are discretised: zoh in v4, bilinear in v3"),
    ),
)
