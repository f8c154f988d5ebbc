"""S5 (Smith, Warrington, Linderman, 2022, arXiv 2208.04933): one diagonal state for all inputs and outputs.

| paper | lindermanlab/S5 | s5-pytorch | lrnnx | shape | role |
|---|---|---|---|---|---|
| Λ | `Lambda_re`, `Lambda_im` | `Lambda`, complex | `A` | mode | lrnnx: Re Λ = −softplus(A₀), Im Λ = A₁ |
| Δ | `log_step` (mode, 1) | `log_step` | `log_dt` | mode | Δ = exp(w), one step per state |
| B̃ | `B` (…, 2) | `B` (…, 2) | `B`, real | mode, input | input |
| C̃ | `C` or `C1`, `C2` (…, 2) | `C`, complex | `C` (…, 2) | output, mode | output; twice the columns: both directions |

K_t = κ Re(C̃ λ̄^t B̄). The JAX code stores one of each conjugate pair where `conj_sym` is set, and then
κ = 2; the others store all modes. `clip_eigs` limits Re Λ to −1e-4 in the forward pass, not in the file.
lrnnx's S5 for events (SforAiDl/lrnnx 1e79400, models/ltv/s5.py:95-107, 143-203) has Re Λ = A₀ as it is, a B with a last
axis of 2, and `conj_sym` as in JAX.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling, Tensor
from ssmdiag.recurrence.discretisation import as_complex, bilinear, bilinear_gain, zoh, zoh_gain


def read(layer: Layer) -> Iterator[Recurrence]:
    pairs = False
    if "Lambda_re" in layer:
        clip = layer.option("clip_eigs") == "true"
        rate = layer.weight("Lambda_re", "direct, at least 1e-4" if clip else "direct")
        frequency = layer.weight("Lambda_im", "none", role="frequency")
        step = layer.weight("log_step", "exp", role="step").T * _rescale(layer)
        pairs = _stores_half(layer, frequency)
    elif "Lambda" in layer:
        packed = layer["Lambda"]
        rate = layer.weight("Lambda", "direct", part=packed.real)
        frequency = layer.weight("Lambda", "none", role="frequency", part=packed.imag)
        step = layer.weight("log_step", "exp", role="step")[None]
    else:
        packed = layer["A"]
        rate = layer.weight("A", "direct" if _is_event_driven(layer) else "softplus", part=packed[:, 0])
        frequency = layer.weight("A", "none", role="frequency", part=packed[:, 1])
        step = layer.weight("log_dt", "exp", role="step")[None]
        if _is_event_driven(layer):
            step, pairs = step * _rescale(layer), _stores_half(layer, frequency)
    eigenvalues = (-rate + 1j * frequency)[None]
    ell, gain = _discretise(layer, eigenvalues, step)
    B = as_complex(layer["B"]) if "A" in layer and not _is_event_driven(layer) else layer.complex("B")
    for branch, C in _outputs(layer, ell.shape[1]):
        yield layer.recurrence(
            ell,
            branch=branch,
            step=step,
            conjugate_pairs=pairs,
            kernel_factor=2.0 if pairs else 1.0,
            input_matrix=gain.T * B,
            output_matrix=C,
        )


def _is_event_driven(layer: Layer) -> bool:
    """Whether it is lrnnx's S5 for events: with steps that are not stored it forgets by elapsed time."""
    return layer.spelling.name == EVENTS


EVENTS = "lrnnx, events"
BRANCHES = ("forward", "backward")
"""Names of the two recurrences of a bidirectional layer."""


def directions(layer: Layer, C: Tensor, modes: int) -> list[tuple[str, Tensor]]:
    """Return C (output, mode) of each direction by the name of its branch.

    The second half of twice as many columns reads the states of a reversed scan with the same λ̄ and B̄.
    """
    if C.shape[1] == modes:
        return [("", C)]
    if C.shape[1] == 2 * modes:
        return list(zip(BRANCHES, (C[:, :modes], C[:, modes:]), strict=True))
    raise LayerError(
        f"{layer.title}: C reads {C.shape[1]} states, the recurrence has {modes}.",
        expected=f"{modes} columns, or {2 * modes} for two directions",
    )


def _outputs(layer: Layer, modes: int) -> list[tuple[str, Tensor]]:
    if "C1" in layer:
        return list(zip(BRANCHES, (layer.complex("C1"), layer.complex("C2")), strict=True))
    return directions(layer, layer.complex("C"), modes)


def _discretise(layer: Layer, eigenvalues: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Return ℓ and B̄/B, both (1, mode)."""
    rule = layer.option("discretization")
    if rule == "bilinear":
        if "A" in layer and not _is_event_driven(layer):
            # lrnnx swaps numerator and denominator; trained models run this rule, so it is read as written.
            layer.note("lrnnx's bilinear rule is λ̄ = (1 − Δλ/2)/(1 + Δλ/2), so its modes with Re λ < 0 grow")
            return bilinear(eigenvalues, -step), -bilinear_gain(eigenvalues, -step)
        return bilinear(eigenvalues, step), bilinear_gain(eigenvalues, step)
    ell = zoh(eigenvalues, step)
    return ell, as_complex(0 * step + 1) if rule == "dirac" else zoh_gain(eigenvalues, step)


def _stores_half(layer: Layer, frequency: Tensor) -> bool:
    """Return whether one of each conjugate pair is stored; without a setting the signs of Im Λ decide.

    At initialisation all signs are equal with `conj_sym`, half and half without; training may move
    single modes across zero.
    """
    below, above = int((frequency < 0).sum()), int((frequency > 0).sum())
    guess = "false" if 4 * min(below, above) >= max(below + above, 1) else "true"
    if "conj_sym" not in layer.assume and layer.setting("conj_sym") is None:
        sure = min(below, above) == 0 < below + above or below == above > 0
        layer.note(
            f"conj_sym={guess} by the signs of Lambda_im, {below} below and {above} above zero: "
            + ("as S5 is initialised" if sure else "uncertain, training moved some")
            + "; it decides a factor of 2 in the kernel"
        )
    return layer.option("conj_sym", inferred=guess) == "true"


def _rescale(layer: Layer) -> float:
    """Return the factor on Δ that S5 uses for data of another sampling rate; 1 where no setting gives it."""
    factor = layer.setting("step_rescale")
    if not isinstance(factor, int | float) or factor == 1:
        return 1.0
    layer.note(f"steps are multiplied by step_rescale = {factor:g}")
    return float(factor)


_JAX = {"Lambda_re": "mode", "Lambda_im": "mode", "log_step": "mode 1", "B": "mode input 2"}

FAMILY = Family(
    name="s5",
    title="S5",
    paper="arXiv 2208.04933",
    memory="exact",
    traits=frozenset({"slow recurrence"}),
    spellings=(
        Spelling("lindermanlab/S5", {**_JAX, "C": "output _ 2"}),
        Spelling("lindermanlab/S5, bidirectional", {**_JAX, "C1": "output mode 2", "C2": "output mode 2"}),
        Spelling(
            "s5-pytorch",
            {"Lambda": "complex: mode", "log_step": "mode", "B": "mode input 2", "C": "complex: output _"},
        ),
        Spelling(
            "lrnnx",
            {
                "A": "mode 2",
                "log_dt": "mode",
                "B": "mode feature",
                "C": "feature mode 2",
                "D": "feature feature",
            },
        ),
        Spelling(
            EVENTS,
            {"A": "mode 2", "log_dt": "mode", "B": "mode feature 2", "C": "feature mode 2", "D": "feature"},
        ),
    ),
    repositories=(
        "lindermanlab/S5",
        "SforAiDl/lrnnx",
    ),
    read=read,
    options=(
        Option(
            "discretization",
            ("zoh", "bilinear", "dirac"),
            "zoh",
            "how Λ and Δ become λ̄",
            ("discretisation",),
        ),
        Option("clip_eigs", ("false", "true"), "false", "whether the forward pass limits Re Λ to −1e-4"),
        Option("conj_sym", ("true", "false"), "true", "whether one of each conjugate pair is stored"),
    ),
)
