"""Long convolutions whose kernel is stored tap by tap (Fu et al., 2023, arXiv 2302.06646).

| symbol | safari | standalone | shape | role |
|---|---|---|---|---|
| w | `kernel.kernel` | `kernel` | copy, channel, lag | K_t = sign(w) relu(abs(w) − λ) |
| D | `D` | `D` | copy, channel | skip |

λ is a setting, not a weight; a moving average comes before it where settings ask for one. HazyResearch/safari 02220c6,
src/models/sequence/long_conv_kernel.py:61 and standalone_long_convs.py:71. With twice as many copies as D has, the
second half of them is for the other direction. Where `causal` is off, and always in the standalone file, the kernel is
stored at twice its length and the convolution is circular (standalone_long_convs.py:75): its second half, from its end
backwards, reads the future.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling, Tensor

MOVING_AVERAGE = 7
"""Lags of the moving average where settings do not say how many."""


def read(layer: Layer) -> Iterator[Recurrence]:
    stored = layer["kernel.kernel" if "kernel.kernel" in layer else "kernel"]
    kernel, copies = _smoothed(layer, stored), layer.shape("D")[0]
    taps = kernel.sign() * (kernel.abs() - _threshold(layer)).clamp(min=0)
    if taps.shape[0] not in (copies, 2 * copies):
        raise LayerError(
            f"{layer.title}: {taps.shape[0]} copies of its kernel beside {copies} of D.",
            expected="as many, or twice as many",
        )
    if taps.shape[0] == 2 * copies:
        ahead, behind = taps[copies:], taps[:copies]
    elif "kernel.kernel" in layer and str(layer.setting("causal", default=True)).lower() != "false":
        yield layer.convolution(taps)
        return
    else:
        half = taps.shape[2] // 2
        ahead, behind = taps.new_zeros(*taps.shape[:2], half), taps[..., :half]
        ahead[..., 1:] = taps[..., half + 1 : 2 * half].flip(2)  # the present input belongs to the other direction
    yield layer.convolution(behind, branch="forward")
    yield layer.convolution(ahead, branch="backward")


def _smoothed(layer: Layer, kernel: Tensor) -> Tensor:
    """Return the moving average of the stored kernel where settings ask for it, zeros around it included."""
    if str(layer.setting("use_ma_smoothing", default=False)).lower() != "true":
        return kernel
    if str(layer.setting("smooth_freq", default=False)).lower() == "true":
        raise LayerError(f"{layer.title}: its kernel is smoothed over frequencies (smooth_freq), which is not read.")
    width = int(layer.setting("ma_window_len", default=MOVING_AVERAGE))
    padded = kernel.new_zeros(*kernel.shape[:2], kernel.shape[2] + width - 1)
    padded[..., width // 2 : width // 2 + kernel.shape[2]] = kernel
    return padded.unfold(2, width, 1).mean(-1)


def _threshold(layer: Layer) -> float:
    """Return λ, and note where nothing says it: what is below it is gone."""
    value = layer.option("lam", usual="0.003" if "kernel.kernel" in layer else "0.1")
    if float(value) < 0:
        raise LayerError(f"{layer.title}: lam is {value}.", expected="a number from 0 up")
    (assumption,) = (one for one in layer.assumptions if one.option == "lam")
    if assumption.source == "usual":
        layer.note(
            f"assumed: lam = {value} ({assumption.meaning}); nothing in the file says. It decides where the kernel "
            "ends: set it with --assume lam=…"
        )
    return float(value)


FAMILY = Family(
    name="long_convolution",
    title="Long convolution",
    paper="arXiv 2302.06646",
    memory="exact",
    spellings=(
        Spelling("HazyResearch/safari", {"kernel.kernel": "_ channel lag", "D": "_ channel"}),
        Spelling(
            "HazyResearch/safari, standalone",
            # Its projection tells it from other kernels with a D, such as a stencil with its constants of diffusion.
            # All of flax's layers have a `kernel`, so it is not the telltale.
            {"output_linear.0.weight": "2*channel copy*channel", "D": "copy channel", "kernel": "copy channel lag"},
        ),
    ),
    read=read,
    options=(
        Option(
            "lam",
            ("0.1", "0.004", "0.003", "0.002", "0.001", "0"),
            "0.003",
            "taps no larger than it count as 0, others lose as much",
            ("kernel_lam",),
            number=True,
        ),
    ),
)
