"""Kimi Delta Attention (Kimi Team, 2025, arXiv 2510.26692): a Gated DeltaNet with a decay per key channel.

    S_t = Diag(e^{g_t}) S_{t−1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ,    z = W_f x + b_f

| paper | tensor | shape | role |
|---|---|---|---|
| A | `A_log`, llama.cpp: `ssm_a` | head, or 1, 1, head, 1 | A = exp(A_log); ssm_a is −A, in Ling's files A |
| b_f | `dt_bias`, `ssm_dt.bias` | head × key channel | bias of the gate, head by head |
| – | `f_proj…`, `f_a_proj`, `ssm_f_a` | any | W_f, in one or two factors; only its name is used |

Two gates share these tensors: plain g = −A softplus(z), and g = L σ(A z), bounded below by L (−5 in
most models). The bound is in config, not in the tensors. GDN-2 (fla) keeps the plain gate.
llama.cpp (ggml-org/llama.cpp 03fe995, src/models/kimi-k3.cpp) has the bound in `{arch}.kda.gate_lower_bound` and the
plain gate where that is not given; Ling's W_f is one matrix (38d3906, src/models/bailingmoe3.cpp) and always bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ssmdiag.errors import LayerError
from ssmdiag.families.forward import ACTIVATION, NEGATIVE_EIGENVALUES
from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import share, taps
from ssmdiag.families.submodules import softplus
from ssmdiag.recurrence.clock import Clock
from ssmdiag.recurrence.discretisation import zoh

_BOUNDED = "GLM-5-next, Kimi-K3", "Ling, Ring (bailing)", "llama.cpp, Ling"
"""Spellings whose models are released with a lower bound of −5."""
_BOUNDS = "gate_lower_bound", "kda_lower_bound", "linear_lower_bound", "lower_bound"
_SWITCHES = "kda_safe_gate", "safe_gate"


def read(layer: Layer) -> Iterator[Recurrence]:
    log_rate, bias = _gate_names(layer)
    heads = _heads(layer, log_rate, bias)
    bound = _bound(layer)
    if bound is None:
        rate = layer.weight(log_rate, "direct" if log_rate == "ssm_a" else "exp").flatten()[:heads, None]
        step = layer.weight(bias, "softplus", role="step").reshape(heads, -1)
        yield layer.recurrence(zoh(-rate, step), step=step, operating_point="the gates at their bias, as at zero input")
    else:
        slope = _slope(layer, log_rate).flatten()[:heads, None]
        gate = slope * layer[bias].reshape(heads, -1)
        opening = layer.weight(bias, "sigmoid", part=gate)
        yield layer.recurrence(bound * opening, operating_point="the gates at their bias, as at zero input")


def _gate_names(layer: Layer) -> tuple[str, str]:
    """Return the local names of the tensors that hold A and b_f."""
    if "ssm_a" in layer:
        return "ssm_a", "ssm_dt.bias"
    prefix = "forget_gate." if "forget_gate.dt_bias" in layer else ""
    return f"{prefix}A_log", f"{prefix}dt_bias"


def _heads(layer: Layer, log_rate: str, bias: str) -> int:
    """Return the number of heads; A_log may be padded beyond it."""
    (channels,) = layer.shape(bias)
    stored = max(layer.shape(log_rate), default=0)
    # GDN-2 writes channel by channel: its b_proj has as many rows as dt_bias.
    heads = min(stored, layer.shape("b_proj.weight")[0]) if "b_proj.weight" in layer else stored
    if not heads or channels % heads:
        raise LayerError(
            f"{layer.names[bias]} has {channels} values, {log_rate} says {heads} heads.",
            expected="a multiple of the number of heads",
        )
    return heads


def _slope(layer: Layer, log_rate: str) -> Tensor:
    """Return A, by which the bounded gate multiplies z. Raises LayerError where llama.cpp's has the wrong sign."""
    if log_rate != "ssm_a":
        return layer[log_rate].exp()
    stored = layer["ssm_a"]
    # Ling's converter, unlike all others, does not negate; either sign of its A is therefore taken, but not both.
    wrong = (stored >= 0) if "ssm_f_b.weight" in layer else (stored >= 0) != (stored.flatten()[0] >= 0)
    if bool(wrong.any()):
        raise LayerError(
            f"{layer.names['ssm_a']}: {int(wrong.sum())} of {stored.numel()} values have the wrong sign.",
            expected="−exp(A_log), which llama.cpp multiplies by",
            advice="a conversion fault: convert the model again.",
        )
    return stored.abs()


def _bound(layer: Layer) -> float | None:
    """Return the lower bound of the log-decay, or None for the plain gate."""
    if "w_proj.weight" in layer:  # GDN-2
        return None
    usual = "-5" if layer.spelling.name.startswith(_BOUNDED) else "none"
    text = layer.option("kda_lower_bound", usual=usual, known=_configured_bound(layer))
    if text != "none" and float(text) >= 0:
        raise LayerError(f"{layer.title}: its lower bound is given as {text}.", expected="a negative log-decay")
    return None if text == "none" else float(text)


def _configured_bound(layer: Layer) -> str | None:
    """Return the bound in the settings, `none` for a plain gate, None where they give neither."""
    # fla's safe_gate only picks a faster kernel: False beside a bound keeps the bound.
    if layer.setting("kda_safe_gate") is False:
        return "none"
    bounds = [layer.setting(name) for name in _BOUNDS]
    bound = next((value for value in bounds if isinstance(value, (int, float))), None)
    if bound is not None:
        return f"{bound:g}"
    if layer.setting(*_SWITCHES) is True:
        return "-5"
    mentioned = {name.rpartition(".")[2] for name in layer.checkpoint.settings}
    plain = layer.setting("model_type") == "kimi_linear" or mentioned & {*_BOUNDS, *_SWITCHES}
    return "none" if plain else None


def clock(module: Any, input: Tensor) -> Clock:
    gate = getattr(module, "forget_gate", module)
    bound = _live_bound(module, gate)
    opening = gate.f_b_proj(gate.f_a_proj(input)) if hasattr(gate, "f_a_proj") else gate.f_proj(input)
    z = opening.double() + gate.dt_bias.double()
    heads = min(gate.A_log.numel(), getattr(getattr(module, "b_proj", None), "out_features", gate.A_log.numel()))
    slope = gate.A_log.double().exp().flatten()[:heads].repeat_interleave(z.shape[-1] // heads)
    if bound is None:
        return Clock(softplus(z), slope[:, None])
    return Clock((slope * z).sigmoid(), slope.new_full((len(slope), 1), -bound))


def _live_bound(module: Any, gate: Any) -> float | None:
    """Return the lower bound that a live module applies, or None for the plain gate."""
    if gate is not module and getattr(gate, "safe_gate", True) is False:  # Ling; in fla it only picks a kernel
        return None
    for name in ("safe_gate_lower_bound", *_BOUNDS):
        for part in (gate, module):
            if hasattr(part, name):
                return None if getattr(part, name) is None else float(getattr(part, name))
    config = getattr(module, "config", None)
    if any(getattr(config, name, None) is not None for name in _BOUNDS):
        raise LayerError("its settings give a lower bound of the decay, and its code does not show where it applies.")
    return None


def _spellings() -> Iterator[Spelling]:
    # GPTQ and AWQ (qweight) and compressed-tensors (weight_packed) keep the name and lose the shape.
    for ending, packed in (("weight", ""), ("qweight", ", GPTQ or AWQ"), ("weight_packed", ", compressed-tensors")):
        for name, gate, a_log in (
            ("Kimi-Linear", "f_a_proj", "1 1 head 1"),
            ("GLM-5-next, Kimi-K3", "f_a_proj", "head"),
            ("Ling, Ring (bailing)", "f_proj", "head"),
            ("fla", "f_proj.0", "head"),
        ):
            tensors = {"dt_bias": "channel", "A_log": a_log, f"{gate}.{ending}": "_ _"}
            yield Spelling(f"{name}{packed}", tensors, {"b_proj.weight": "_ _", "w_proj.weight": "_ _"})
            if gate != "f_proj.0":
                inside = {f"forget_gate.{local}": axes for local, axes in tensors.items()}
                yield Spelling(f"{name}, in memory{packed}", inside, {"b_proj.weight": "_ _"})
    for axes in ("head", "head 1", "1 1 head 1"):  # by converter; quantising drops leading axes of 1
        shape = "" if axes == "head" else f", {axes.replace(' ', ' × ')}"
        tensors = {"ssm_f_b.weight": "_ _", "ssm_f_a.weight": "_ _", "ssm_a": axes, "ssm_dt.bias": "channel"}
        yield Spelling(f"llama.cpp{shape}", tensors, {"ssm_beta.weight": "_ _"})
    ling = {"ssm_f_a.weight": "_ _", "ssm_a": "head 1", "ssm_dt.bias": "channel"}
    yield Spelling("llama.cpp, Ling", ling, {"ssm_beta.weight": "_ _"}, absent=("ssm_f_b.weight",))


def steering(layer: Layer) -> Iterator[Steering]:
    prefix = "forget_gate." if "forget_gate.dt_bias" in layer else ""
    if "ssm_a" in layer:
        factored = "ssm_f_b.weight" in layer
        yield Steering("decay, first factor" if factored else "decay", "ssm_f_a.weight", needed=True)
        yield Steering("decay, second factor", "ssm_f_b.weight")
    elif any(f"{prefix}f_proj.{ending}" in layer for ending in ("weight", "qweight", "weight_packed")):
        yield Steering("decay", f"{prefix}f_proj.weight", needed=True)
    else:
        for first, second in (("f_a_proj", "f_b_proj"), ("f_proj.0", "f_proj.1")):
            yield Steering("decay, first factor", f"{prefix}{first}.weight", needed=True)
            yield Steering("decay, second factor", f"{prefix}{second}.weight", needed=True)
            yield Steering("bias of the second factor", f"{prefix}{second}.bias")
    yield Steering("write strength", "b_proj.weight", needed=True)
    yield Steering("write strength", "ssm_beta.weight")
    yield Steering("write gate", "w_proj.weight")
    for part, role in enumerate(("query", "key", "value")):
        yield Steering(role, f"{role[0]}_proj.weight")
        yield Steering(role, f"attn_{role[0]}.weight")
        yield Steering(role, "attn_qkv.weight", partial(share, part=part, parts=3))
        yield Steering(f"convolution of the {role}", f"ssm_conv1d_{role[0]}.weight", _llama_cpp_taps)
        convolution = f"convolution of the {role}"
        yield Steering(convolution, f"{role[0]}_conv1d.weight", taps)
        yield Steering(convolution, "conv1d.weight", partial(_stacked, part=part))
        yield Steering(convolution, f"{role[0]}_conv.conv.weight", taps)  # MLX


def _llama_cpp_taps(kernel: Tensor, layer: Layer) -> Tensor:
    """Return (channel, tap) of llama.cpp's (1, channel, 1, tap), whichever of its axes of 1 a converter kept."""
    return kernel.flatten(0, -2) if kernel.ndim > 1 else kernel


def _stacked(rows: Tensor, layer: Layer, *, part: int) -> Tensor | None:
    """Return the rows of q, k or v of a convolution over all three, by the rows of their projections."""
    stored = [layer.beside(f"{name}_proj.weight") for name in "qkv"]
    sizes = [0 if tensor is None else tensor.shape[0] for tensor in stored]
    return rows.flatten(1).split(sizes)[part] if sum(sizes) == len(rows) and all(sizes) else None


FAMILY = Family(
    name="kda",
    title="Kimi Delta Attention",
    paper="arXiv 2510.26692",
    memory="nominal",
    traits=frozenset({"float32 decay", "layers alike", "matrix memory", "overwrites"}),
    spellings=tuple(_spellings()),
    repositories=("fla-org/flash-linear-attention",),
    model_types=(
        "bailing_hybrid",
        "glm5_next",
        "glm5_next_text",
        "kimi_linear",
    ),
    gguf=("kimi-linear",),
    read=read,
    clock=clock,
    steering=steering,
    forward=(ACTIVATION, NEGATIVE_EIGENVALUES),
    options=(
        Option(
            "kda_lower_bound",
            ("none", "-5"),
            usual="none",
            meaning="log-decay −exp(A_log) softplus(z), or L σ(exp(A_log) z) with this lower bound L",
            number=True,
        ),
    ),
    caveat="Along the key that is written the memory is overwritten too (by β), so the decay bounds it from above.",
)
