"""S4 (Gu, Goel, Ré, 2021, arXiv 2111.00396): a diagonal-plus-low-rank state matrix, bilinear rule.

| paper | v4 | v3 | v2 | v1 (`krylov.`) | shape | role |
|---|---|---|---|---|---|---|
| Re Λ | `A_real` | `inv_w_real` | `w` or `log_w_real` | `w` | ssm, mode | v4, v3: −f(w) |
| Im Λ | `A_imag` | `w_imag` | `w` or `w_imag` | `w` | ssm, mode | v4: −f(w); before: +w |
| P, Q | `P` | `P` | `P`, `Q` | `B[1:]`, `C̄[1:]` | rank, ssm, mode, 2 | A = Λ − PQᵀ; Q = P̄ where it is not stored |
| Δ | `inv_dt` | `log_dt` | `log_dt` | `log_dt` | channel(, 1) | v4: f(w), before: exp(w) |
| B | `B` | `B` | `B` | `B[0]` | 1, ssm, mode, 2 | input |
| C̃ | `C` | `C` | `C` | `C̄[0]` | copy, channel, mode, 2 | C(I − Ā^L), once a forward pass has set L |
| L | `l_kernel` | `L` | 2(len `omega` − 1) | 2(len `nodes` − 1) | – | length the kernel was computed for; 0: C̃ = C |

One of each conjugate pair is stored, and the pairs are coupled by PQᵀ: A acts on 2N states, and Λ is not its
spectrum. K_t = C Ā^t B̄. Its eigenvectors are useless (condition beyond 1e19 for LegS): eigenvalues serve for
margins, the kernel comes from the dense realisation. The same holds for dense v4 kernels (`A`) and SpaceTime's
companion matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ssmdiag.families.forward import BIDIRECTIONAL
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Tensor
from ssmdiag.families.s4d import TRANSFORM_OPTIONS, band, note_direction, read_eigenvalues, read_step, tile
from ssmdiag.recurrence.discretisation import as_complex, bilinear, bilinear_matrix, log_of, matrix_eigenvalues
from ssmdiag.recurrence.modal import DenseRealisation


def read(layer: Layer) -> Iterator[Recurrence]:
    note_direction(layer)
    if "A" in layer:
        companion = len(layer.shape("A")) == 3
        yield (_read_companion if companion else _read_dense)(layer)
        return
    diagonal, P, Q, B, C = _read_krylov(layer) if "krylov.w" in layer else _read_parts(layer)
    if "inv_dt" in layer:
        step = read_step(layer)
    else:
        step = layer.weight("krylov.log_dt" if "krylov.w" in layer else "log_dt", "exp", role="step")[:, None]
    channels, length = step.shape[0], _length(layer)
    C = C * band(layer, tile(layer, diagonal, channels).imag * step)
    A = _real_form(diagonal, P, Q)
    B = tile(layer, _stack(B.real, B.imag), channels)
    C = 2 * _stack(C.real, -C.imag)
    yield _recurrence(layer, A, B, C, step.repeat(1, 2) if step.shape[1] > 1 else step, length)


def _read_parts(layer: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return Λ (ssm, mode), P and Q (rank, ssm, mode), B (ssm, mode), C (copy, channel, mode) of v4, v3, v2."""
    if "A_real" in layer:
        diagonal = read_eigenvalues(layer)
    elif "w" in layer:
        diagonal = _read_packed(layer, "w")
    else:
        if "inv_w_real" in layer:
            rate = layer.weight("inv_w_real", layer.option("real_transform"))
        else:
            rate = layer.weight("log_w_real", "exp")
        diagonal = -rate + 1j * layer.weight("w_imag", "none", role="frequency")
    P = layer.complex("P")
    return diagonal, P, layer.complex("Q") if "Q" in layer else P.conj(), layer.complex("B")[0], layer.complex("C")


def _read_krylov(layer: Layer) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the same of v1, which stacks B with P, and C̄ with Q̄, in rows."""
    diagonal = _read_packed(layer, "krylov.w")
    B, C = layer.complex("krylov.B").movedim(-2, 0), layer.complex("krylov.C").movedim(-2, 0).conj()
    return diagonal.expand(B.shape[1:]), B[1:], C[1:], B[0], C[:1]


def _read_packed(layer: Layer, local: str) -> Tensor:
    """Return eigenvalues stored directly, (re, im) on the last axis, and record them as weights."""
    values = layer.complex(local)
    layer.weight(local, "direct", part=values.real)
    layer.weight(local, "none", role="frequency", part=values.imag)
    return values


def _length(layer: Layer) -> int | None:
    """Return the L for which C̃ was computed, 0 where C is plain, None where the file does not give it."""
    for name in ("l_kernel", "L"):
        if name in layer:
            length = layer.count(name)
            if length or layer.setting("bandlimit") is None:
                return length
            layer.note("bandlimit acts on C̃, whose length is not set before the first forward pass: kernel unknown")
            return None
    for name in ("omega", "krylov.nodes"):
        if name in layer:
            return 2 * (layer.shape(name)[0] - 1)
    layer.note("the length that C was computed for is not in the file: decays are unaffected, the kernel is unknown")
    return None


def _real_form(diagonal: Tensor, P: Tensor, Q: Tensor) -> Tensor:
    """Return A on the real state (Re x, Im x), (ssm, 2 mode, 2 mode): ẋ = Λx − Σ_r P_r · 2 Re(Q_rᵀ x).

    A rotation of the paper's (x, x̄), so eigenvalues come in exact conjugate pairs.
    """
    import torch

    decay, turn = diagonal.real.diag_embed(), diagonal.imag.diag_embed()
    rotation = torch.cat([torch.cat([decay, -turn], -1), torch.cat([turn, decay], -1)], -2)
    return rotation - 2 * torch.einsum("rsm,rsn->smn", _stack(P.real, P.imag), _stack(Q.real, -Q.imag))


def _stack(first: Tensor, second: Tensor) -> Tensor:
    import torch

    return torch.cat([first, second], -1)


def _read_dense(layer: Layer) -> Recurrence:
    A, B = layer.complex("A"), layer.complex("B")
    step = read_step(layer)
    return _recurrence(layer, A, tile(layer, B, step.shape[0]), layer.complex("C"), step, 0)


def _read_companion(layer: Layer) -> Recurrence:
    """Return SpaceTime's recurrence: a shift matrix whose last column is A, without Δ."""
    import torch

    column = layer.complex("A").real
    layer.note("A is the last column of a companion matrix: no weight of it is the rate of a mode")
    C = layer.complex("C")
    state_matrix = torch.zeros(*column.shape, column.shape[-1], dtype=column.dtype, device=column.device)
    state_matrix[:, 1:, :-1] = torch.eye(column.shape[-1] - 1, dtype=column.dtype, device=column.device)
    state_matrix[:, :, -1] = column
    channels = C.shape[1]
    B = tile(layer, layer.complex("B").real, channels)

    def dense() -> DenseRealisation:
        return DenseRealisation(as_complex(tile(layer, state_matrix, channels)), as_complex(B), C)

    return layer.recurrence(tile(layer, log_of(matrix_eigenvalues(state_matrix)), channels), dense=dense)


def _recurrence(layer: Layer, A: Tensor, B: Tensor, C: Tensor, step: Tensor, length: int | None) -> Recurrence:
    """Return the bilinear recurrence of A (ssm, state, state), B (channel, state), C̃ (copy, channel, state)."""
    channels = step.shape[0]
    if step.shape[1] > 1:  # one Δ per state: it scales the rows of A, so each channel has its own spectrum
        A, B = step[..., None] * tile(layer, A, channels), step * B
        step = step[:, :1] * 0 + 1
    eigenvalues = tile(layer, matrix_eigenvalues(A), channels)
    dense = None if length is None else partial(bilinear_matrix, tile(layer, A, channels), B, C, step, length)
    return layer.recurrence(bilinear(eigenvalues, step), step=step, dense=dense)


_ROWS, _LOW_RANK = "ssm mode 2", "rank ssm mode 2"
_IO = {"B": f"1 {_ROWS}", "C": "copy channel mode 2"}
_STEP = {"log_dt": "channel"}

FAMILY = Family(
    name="s4",
    title="S4",
    paper="arXiv 2111.00396",
    memory="exact",
    traits=frozenset({"slow recurrence"}),
    spellings=(
        Spelling(
            "state-spaces/s4 v4, SSMKernelDPLR",
            {"P": _LOW_RANK, "A_real": "ssm mode", "A_imag": "ssm mode", "inv_dt": "channel _"} | _IO,
            {"l_kernel": ""},
        ),
        Spelling(
            "state-spaces/s4 v3, SSKernelNPLR",
            {"inv_w_real": "ssm mode", "w_imag": "ssm mode", "P": _LOW_RANK} | _STEP | _IO,
            {"L": ""},
        ),
        Spelling(
            "state-spaces/s4 v2, hurwitz",
            {"log_w_real": "ssm mode", "w_imag": "ssm mode", "P": _LOW_RANK} | _STEP | _IO,
            {"L": "", "omega": "_ 2"},
        ),
        Spelling(
            "state-spaces/s4 v2",
            {"Q": _LOW_RANK, "w": _ROWS, "P": _LOW_RANK} | _STEP | _IO,
            {"L": "", "omega": "_ 2"},
        ),
        *(
            Spelling(
                f"state-spaces/s4 v1{name}",
                {
                    "krylov.w": axes,
                    "krylov.B": "channel rows mode 2",
                    "krylov.C": "channel rows mode 2",
                    "krylov.log_dt": "channel",
                },
                {"krylov.nodes": "_ 2"},
            )
            for name, axes in {"": "mode 2", ", A untied": "channel mode 2"}.items()
        ),
        Spelling(
            "state-spaces/s4 v4, SSMKernelDense",
            {"A": "ssm state state 2", "B": "ssm state 2", "C": "copy channel state 2", "inv_dt": "channel 1"},
            absent=("A_real", "P"),
        ),
        Spelling(
            "state-spaces/s4 v4, companion",
            {"A": "ssm state 2", "B": "ssm state 2", "C": "copy channel state 2", "inv_dt": "channel 1"},
            absent=("A_real", "P", "inv_A_real"),
        ),
    ),
    repositories=("state-spaces/s4",),
    read=read,
    forward=(BIDIRECTIONAL,),
    options=TRANSFORM_OPTIONS,
    caveat="Eigenvalues of HiPPO matrices move when weights are rounded; the kernel is computed without them.",
)
