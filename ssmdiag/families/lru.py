"""LRU, linear recurrent unit (Orvieto et al., 2023, arXiv 2303.06349) and its ports.

| paper | tensor | LRURec | shape | role |
|---|---|---|---|---|
| ν | `nu_log` | `params_log[0]` | mode | abs λ = exp(−exp(w)) < 1 |
| θ | `theta_log` | `params_log[1]` | mode | arg λ = exp(w) |
| γ | `gamma_log` | `params_log[2]` | mode | input gain exp(w); trained, no longer √(1 − abs λ²) |
| B | `B_re`, `B_im`, or `B` | `in_proj.weight` | mode, input | input; complex, or a last axis of 2 |
| C | `C_re`, `C_im`, or `C` | `out_proj.weight` | output, mode | output, the same |

ℓ = −exp(ν) + i exp(θ) directly: there is no step. K_t = Re(C λ^t γB), without a factor 2. LRURec's
`in_proj.bias` adds a constant input, which is no part of the kernel. sbi (sbi-dev/sbi 012a492,
neural_nets/embedding_nets/lru.py:240-262, 345-385) has `log_nu`, `log_theta`, `log_gamma`, and both directions in one
state: its second half reads the input backward, with eigenvalues of its own. That it does is not stored.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling, Tensor
from ssmdiag.families.s5 import directions
from ssmdiag.recurrence.discretisation import as_complex


def read(layer: Layer) -> Iterator[Recurrence]:
    if "params_log" in layer:
        rows = layer["params_log"]
        nu = layer.weight("params_log", "exp", part=rows[0])
        theta = layer.weight("params_log", "exp", role="frequency", part=rows[1])
        gain = rows[2].exp()
        B, C = layer["in_proj.weight"], layer["out_proj.weight"]
    elif "log_nu" in layer:
        yield from _of_sbi(layer)
        return
    else:
        nu = layer.weight("nu_log", layer.rate_map() or "exp")  # ssmdiag retrain trains it through other maps too
        theta = layer.weight("theta_log", "exp", role="frequency")
        gain = _gain(layer, nu)
        B, C = _matrix(layer, "B"), _matrix(layer, "C")
    for branch, output in directions(layer, C, len(nu)):
        yield layer.recurrence(
            (-nu + 1j * theta)[None],
            branch=branch,
            input_matrix=gain[:, None] * B,
            output_matrix=output,
        )


def _of_sbi(layer: Layer) -> Iterator[Recurrence]:
    """Yield the recurrence, or one for each direction, each with half of the state."""
    modes = layer.axis("mode")
    both = layer.option("bidirectional", inferred="false" if modes % 2 else None) == "true"
    if both and modes % 2:
        raise LayerError(f"{layer.title}: {modes} modes are no two directions.", advice="--assume bidirectional=false")
    halves = (
        (("forward", slice(0, modes // 2)), ("backward", slice(modes // 2, modes))) if both else (("", slice(modes)),)
    )
    for branch, half in halves:
        own = layer.again()
        own.option("bidirectional", inferred="false" if modes % 2 else None)
        nu = own.weight("log_nu", "exp", part=own["log_nu"][half])
        theta = own.weight("log_theta", "exp", role="frequency", part=own["log_theta"][half])
        gain = own["log_gamma"][half].exp()
        yield own.recurrence(
            (-nu + 1j * theta)[None],
            branch=branch,
            input_matrix=gain[:, None] * own["B"][half],
            output_matrix=own["C"][:, half],
        )


def _gain(layer: Layer, nu: Tensor) -> Tensor:
    if "gamma_log" in layer:
        return layer["gamma_log"].exp()
    layer.note("gamma_log is not stored: the input gain is assumed to be √(1 − |λ|²)")
    return (-(-2 * nu).expm1()).sqrt()


def _matrix(layer: Layer, name: str) -> Tensor:
    real, imag = f"{name}_re", f"{name}_im"
    return as_complex(layer[real]) + 1j * layer[imag] if real in layer else layer.complex(name)


_RING = {"nu_log": "mode", "theta_log": "mode"}
_GAIN = {"gamma_log": "mode"}

FAMILY = Family(
    name="lru",
    title="LRU",
    paper="arXiv 2303.06349",
    memory="exact",
    traits=frozenset({"slow recurrence"}),
    spellings=(
        Spelling(
            "minimal-LRU, lrnnx",
            {**_RING, "B_re": "mode input", "B_im": "mode input", "C_re": "output _", "C_im": "output _"},
            _GAIN,
        ),
        Spelling("LRU-pytorch", {**_RING, "B": "complex: mode input", "C": "complex: output _"}, _GAIN),
        Spelling("B and C as (re, im)", {**_RING, "B": "mode input 2", "C": "output _ 2"}, _GAIN),
        Spelling(
            "LRURec",
            {
                "params_log": "3 mode",
                "in_proj.weight": "complex: mode input",
                "out_proj.weight": "complex: output mode",
            },
        ),
        Spelling(
            "sbi",
            {
                "log_nu": "mode",
                "log_theta": "mode",
                "log_gamma": "mode",
                "B": "complex: mode input",
                "C": "complex: output mode",
            },
        ),
    ),
    repositories=(
        "NicolasZucchet/minimal-LRU",
        "SforAiDl/lrnnx",
        "yueqirex/LRURec",
    ),
    read=read,
    options=(Option("bidirectional", ("true", "false"), "true", "whether half of sbi's state reads backward"),),
)
