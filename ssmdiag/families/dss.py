"""DSS (Gupta, Gu, Berant, 2022, arXiv 2203.14343): diagonal state spaces normalised by a softmax.

| paper | tensor | shape | role |
|---|---|---|---|
| Λ | `Lambda` | mode, 2 | softmax and clip: Λ itself; shared by all channels |
| Re Λ | `Lambda_log_neg_re` | mode | exp: Re Λ = −exp(w) |
| Im Λ | `Lambda_im`, `Lambda_log_im` | mode | exp: Im Λ = w; exp-re-im: Im Λ = exp(w) |
| Δ | `log_dt` | channel(, 2) | exp(w); two columns: one Δ for Re Λ, one for Im Λ |
| W | `W` | copy, channel, mode, 2 | output, times a scale that the version decides |

λ̄ = e^{ΔΛ}, K_t = Re Σ_n W_n s_n λ̄_n^t: all modes are stored, none implied. The scale s is
(λ̄ − 1)/((λ̄^L − 1)Λ) in the softmax version, L the sequence length; (λ̄ − 1)/Λ in exp and clip; 1 in no-scale.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.families.forward import BIDIRECTIONAL
from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling, Tensor
from ssmdiag.recurrence.discretisation import as_complex

SOFTMAX_EPSILON = 1e-7
"""Added to |z|² in the reciprocals, so that a zero mode has a finite weight."""


def read(layer: Layer) -> Iterator[Recurrence]:
    if "Lambda" in layer:
        version = layer.option("version", among=("softmax", "clip", "clip-no-scale"))
        eigenvalues = layer.complex("Lambda")
        layer.weight("Lambda", "direct", part=eigenvalues.real)
        layer.weight("Lambda", "none", role="frequency", part=eigenvalues.imag)
        if version != "softmax":
            limit = float(layer.setting("max_real_Lambda", default=1e-4))
            eigenvalues = eigenvalues.real.clamp(max=limit) + 1j * eigenvalues.imag
    else:
        names = ("exp-re-im",) if "Lambda_log_im" in layer else ("exp", "exp-no-scale")
        version = layer.option("version", among=names)
        rate = layer.weight("Lambda_log_neg_re", "exp")
        if "Lambda_log_im" in layer:
            frequency = layer.weight("Lambda_log_im", "exp", role="frequency")
        else:
            frequency = layer.weight("Lambda_im", "none", role="frequency")
        eigenvalues = -rate + 1j * frequency
    steps = layer.weight("log_dt", "exp", role="step")
    real_step, imag_step = (steps[:, None], steps[:, None]) if steps.ndim == 1 else (steps[:, :1], steps[:, 1:])
    ell = real_step * eigenvalues.real + 1j * (imag_step * eigenvalues.imag)
    if version == "softmax":
        gain = softmax_gain(layer, eigenvalues, ell)
    elif version.endswith("no-scale"):
        gain = as_complex(ell.real * 0 + 1)
    else:
        gain = ell.expm1() * eigenvalues.conj() / eigenvalues.abs().square().clamp(min=SOFTMAX_EPSILON)
    yield layer.recurrence(
        ell,
        step=real_step,
        conjugate_pairs=False,
        kernel_factor=1.0,
        input_matrix=gain,
        output_matrix=layer.complex("W"),
    )


def softmax_gain(layer: Layer, eigenvalues: Tensor, ell: Tensor) -> Tensor | None:
    """Return the softmax scale (channel, mode) for ℓ = ΔΛ, or None where nothing gives the length L.

    Growing modes are normalised at the far end, where they are largest.
    """
    length = layer.setting("l_max", "__l_max")
    if not isinstance(length, int) or length < 1:
        layer.note(
            "the softmax normalises over the sequence length, which the file does not give; decays are unaffected"
        )
        return None
    grows = as_complex(eigenvalues.real > 0)
    towards_zero = ell * (1 - 2 * grows)
    total = (towards_zero * length).expm1() * eigenvalues
    reciprocal = total.conj() / (total.abs().square() + SOFTMAX_EPSILON)
    return towards_zero.expm1() * reciprocal * (-ell * grows * (length - 1)).exp()


_LAMBDA = {
    "softmax or clip": {"Lambda": "mode 2"},
    "exp": {"Lambda_log_neg_re": "mode", "Lambda_im": "mode"},
    "exp-re-im": {"Lambda_log_neg_re": "mode", "Lambda_log_im": "mode"},
}
_STEPS = {"": "channel", ", two steps": "channel 2"}

FAMILY = Family(
    name="dss",
    title="DSS",
    paper="arXiv 2203.14343",
    memory="exact",
    traits=frozenset({"slow recurrence"}),
    spellings=tuple(
        Spelling(
            f"ag1988/dss, {version}{steps}",
            {**tensors, "W": "copy channel mode 2", "log_dt": axes},
        )
        for version, tensors in _LAMBDA.items()
        for steps, axes in _STEPS.items()
    ),
    repositories=("ag1988/dss",),
    read=read,
    forward=(BIDIRECTIONAL,),
    options=(
        Option(
            "version",
            ("softmax", "clip", "clip-no-scale", "exp", "exp-no-scale", "exp-re-im"),
            "softmax",
            "how Λ is limited and the kernel is scaled",
        ),
    ),
)
