"""S4's diagonal-plus-low-rank kernels against the paper's formulas on the full complex state.

Here Ā and B̄ are formed on the 2N states (x, x̄) and the truncation I − Ā^L is undone explicitly; the family
works on (Re x, Im x) instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mpmath
import pytest
import torch
from torch import Tensor

from ssmdiag.diagnosis import diagnose
from ssmdiag.recurrence.modal import Recurrence
from tests.reference import relative_error, stepped_kernel
from tests.tolerances import RELATIVE

H, S, N, COPIES = 4, 2, 3, 2

Read = Callable[..., list[Recurrence]]
State = dict[str, Tensor]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pairs(values: Tensor) -> Tensor:
    return torch.view_as_real(values.resolve_conj()).clone()


class Model(NamedTuple):
    """One S4 layer as the paper writes it, before any spelling."""

    diagonal: Tensor
    P: Tensor
    Q: Tensor
    B: Tensor
    C: Tensor
    step: Tensor

    def full(self) -> Tensor:
        """A = Λ − P Qᵀ on (x, x̄), (S, 2N, 2N)."""
        both = [torch.cat([x, x.conj()], -1) for x in (self.diagonal, self.P, self.Q)]
        return torch.diag_embed(both[0]) - torch.einsum("rsm,rsn->smn", both[1], both[2])

    def discrete(self) -> tuple[Tensor, Tensor]:
        """Ā, B̄ by the bilinear rule, (H, 2N, 2N) and (H, 2N); channel h uses copy h mod S."""
        A, B = self.full(), torch.cat([self.B, self.B.conj()], -1)
        identity = torch.eye(2 * N, dtype=A.dtype)
        state, inputs = [], []
        for h in range(H):
            copy, step = h % len(A), self.step[h]
            back = torch.linalg.inv(identity - step / 2 * A[copy])
            state.append(back @ (identity + step / 2 * A[copy]))
            inputs.append(back @ B[copy] * step)
        return torch.stack(state), torch.stack(inputs)

    def kernel(self, length: int, lags: int) -> Tensor:
        """K_t = C Ā^t B̄ with C = C̃ (I − Ā^L)⁻¹, or C = C̃ where L is 0."""
        state, inputs = self.discrete()
        output = torch.cat([self.C, self.C.conj()], -1)
        if length:
            undo = torch.linalg.inv(torch.eye(2 * N) - torch.linalg.matrix_power(state, length))
            output = torch.einsum("chm,hmn->chn", output, undo)
        rows = []
        for _ in range(lags):
            rows.append(torch.einsum("chn,hn->ch", output, inputs).real)
            inputs = torch.einsum("hmn,hn->hm", state, inputs)
        return torch.stack(rows, -1)


def model(*, rank: int = 1, copies: int = S, tied: bool = True) -> Model:
    diagonal = torch.complex(-0.3 - random(copies, N, seed=1).abs(), -1 - random(copies, N, seed=2).abs())
    P = torch.complex(random(rank, copies, N, seed=3), random(rank, copies, N, seed=4)) / 2
    Q = P.conj() if tied else P.conj() + 0.2 * torch.complex(random(*P.shape, seed=10), random(*P.shape, seed=11))
    B = torch.complex(random(copies, N, seed=5), random(copies, N, seed=6))
    C = torch.complex(random(COPIES, H, N, seed=7), random(COPIES, H, N, seed=8))
    return Model(diagonal, P, Q, B, C, (-2 + 0.5 * random(H, seed=9)).exp())


def v4(m: Model, length: int | None, prefix: str = "layer.kernel.") -> State:
    state = {
        "inv_dt": m.step.log()[:, None],
        "A_real": (-m.diagonal.real).log(),
        "A_imag": -m.diagonal.imag,
        "B": pairs(m.B[None]),
        "C": pairs(m.C),
        "P": pairs(m.P),
    }
    if length is not None:
        state["l_kernel"] = torch.tensor(length)
    return {f"{prefix}{name}": value for name, value in state.items()}


def v3(m: Model, length: int, prefix: str = "layer.kernel.kernel.") -> State:
    state = {
        "log_dt": m.step.log(),
        "inv_w_real": (-m.diagonal.real).log(),
        "w_imag": m.diagonal.imag,
        "B": pairs(m.B[None]),
        "C": pairs(m.C),
        "P": pairs(m.P),
        "L": torch.tensor(length),
    }
    return {f"{prefix}{name}": value for name, value in state.items()}


def v2(m: Model, length: int, *, hurwitz: bool) -> State:
    state = {
        "log_dt": m.step.log(),
        "B": pairs(m.B[None]),
        "C": pairs(m.C),
        "P": pairs(m.P),
        "omega": torch.zeros(length // 2 + 1, 2),
        "z": torch.zeros(length // 2 + 1, 2),
    }
    if hurwitz:
        state |= {"log_w_real": (-m.diagonal.real).log(), "w_imag": m.diagonal.imag}
    else:
        state |= {"w": pairs(m.diagonal), "Q": pairs(m.Q)}
    return {f"layer.kernel.kernel.{name}": value for name, value in state.items()}


def v1(m: Model, length: int, *, untied: bool) -> State:
    rows = [x.expand(H, N) for x in (m.B[0], *m.P[:, 0])] if not untied else [m.B, *m.P]
    outputs = [m.C[0].conj(), *(q.conj().expand(H, N) for q in m.Q)]
    state = {
        "log_dt": m.step.log(),
        "w": pairs(m.diagonal if untied else m.diagonal[0]),
        "B": pairs(torch.stack(rows, 1)),
        "C": pairs(torch.stack(outputs, 1)),
        "nodes": torch.zeros(length // 2 + 1, 2),
        "z": torch.zeros(length // 2 + 1, 2),
    }
    return {f"layer.kernel.krylov.{name}": value for name, value in state.items()}


def assert_spectrum(found: Recurrence, m: Model) -> None:
    """ℓ = log((1 + Δa/2)/(1 − Δa/2)) for the eigenvalues a of A, at 50 digits."""
    with mpmath.workdps(50):
        for copy, A in enumerate(m.full()):
            exact = mpmath.eig(mpmath.matrix(A.tolist()), left=False, right=False)
            for h in range(copy, H, len(m.full())):
                half = mpmath.mpf(float(m.step[h])) / 2
                left = [mpmath.log((1 + half * a) / (1 - half * a)) for a in exact]
                for value in found.log_eigenvalues[h].tolist():
                    near = min(left, key=lambda ell: abs(ell - value))
                    assert abs(near - value) < RELATIVE["complex128"] * abs(near)
                    left.remove(near)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("length", [0, 32, 40])
def test_v4_kernel_undoes_the_truncation_that_is_folded_into_c(rank: int, length: int, read_model: Read) -> None:
    m = model(rank=rank)
    (found,) = read_model(v4(m, length))
    assert relative_error(stepped_kernel(found, 100), m.kernel(length, 100)) < 1e-12
    assert (found.family, found.layer, found.channels, found.modes) == ("s4", "layer.kernel", H, 2 * N)
    assert found.kernel_factor == 1


@pytest.mark.parametrize("rank", [1, 2])
def test_the_spectrum_is_that_of_the_whole_matrix_and_not_of_its_diagonal(rank: int, read_model: Read) -> None:
    m = model(rank=rank)
    (found,) = read_model(v4(m, 32))
    assert_spectrum(found, m)
    diagonal = m.step[:, None] * m.diagonal.repeat(2, 1)
    assert (found.rate.min(1).values + diagonal.real.max(1).values).abs().min() > 1e-3
    frequency = found.frequency.sort(1).values
    assert torch.equal(frequency, -frequency.flip(1)), "eigenvalues of a real system come in exact pairs"


def test_the_stored_c_is_the_one_whose_transform_the_model_takes(read_model: Read) -> None:
    """The generating function at the L-th roots of unity, C̃ (I − Āz)⁻¹ B̄, has K_0 … K_{L−1} as coefficients."""
    length, m = 24, model()
    (found,) = read_model(v4(m, length))
    state, inputs = m.discrete()
    output = torch.cat([m.C, m.C.conj()], -1)
    roots = torch.exp(-2j * math.pi * torch.arange(length, dtype=torch.float64) / length)
    values = [
        torch.einsum("chn,hn->ch", output, torch.linalg.solve(torch.eye(2 * N) - z * state, inputs)) for z in roots
    ]
    K = torch.fft.ifft(torch.stack(values, -1)).real
    assert relative_error(stepped_kernel(found, length), K) < 1e-12


def test_without_its_length_a_layer_has_a_spectrum_and_no_kernel(read_model: Read) -> None:
    (found,) = read_model(v4(model(), None))
    assert_spectrum(found, model())
    assert found.dense is None
    assert any("length" in note for note in found.notes)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("length", [0, 32])
@pytest.mark.parametrize("relu", [True, False])
def test_v3_has_the_same_kernel_under_its_names_and_signs(relu: bool, length: int, read_model: Read) -> None:
    m = model()
    state = v3(m, length)
    if relu:  # this kernel's relu adds no 1e-4
        state["layer.kernel.kernel.inv_w_real"] = -m.diagonal.real
    (found,) = read_model(state, {"real_type": "relu"} if relu else None)
    assert relative_error(stepped_kernel(found, 80), m.kernel(length, 80)) < 1e-12
    assert_spectrum(found, m)
    assert found.spelling == "state-spaces/s4 v3, SSKernelNPLR"


def test_a_file_converted_from_v3_to_v4_has_the_kernel_it_had_before(read_model: Read) -> None:
    """As the repository's converter does it: renamed, log_dt with one axis more, w_imag negated."""
    m = model()
    names = {"log_dt": "inv_dt", "inv_w_real": "A_real", "w_imag": "A_imag", "L": "l_kernel"}
    state = {f"l.layer.layer.kernel.{names.get(name, name)}": value for name, value in v3(m, 32, "").items()}
    state["l.layer.layer.kernel.inv_dt"] = state["l.layer.layer.kernel.inv_dt"][:, None]
    state["l.layer.layer.kernel.A_imag"] = -state["l.layer.layer.kernel.A_imag"]
    (found,) = read_model(state)
    assert relative_error(stepped_kernel(found, 80), m.kernel(32, 80)) < 1e-12


@pytest.mark.one_in(3)
@pytest.mark.parametrize("copies", [1, H])
@pytest.mark.parametrize("hurwitz", [True, False])
def test_v2_finds_its_length_in_its_fourier_nodes(hurwitz: bool, copies: int, read_model: Read) -> None:
    m = model(copies=copies, tied=hurwitz)
    (found,) = read_model(v2(m, 32, hurwitz=hurwitz))
    assert relative_error(stepped_kernel(found, 80), m.kernel(32, 80)) < 1e-12
    assert_spectrum(found, m)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("untied", [True, False])
def test_v1_stacks_its_low_rank_factors_under_b_and_the_conjugate_of_c(untied: bool, read_model: Read) -> None:
    m = model(copies=H if untied else 1, tied=False)
    (found,) = read_model(v1(m, 32, untied=untied))
    assert relative_error(stepped_kernel(found, 80), m.kernel(32, 80)[:1]) < 1e-12
    assert_spectrum(found, m)


def test_steps_that_differ_between_states_scale_the_rows_of_a(read_model: Read) -> None:
    m = model(copies=H)
    steps = (-2 + 0.5 * random(H, N, seed=20)).exp()
    (found,) = read_model(v4(m, 0) | {"layer.kernel.inv_dt": steps.log()})
    both = torch.cat([steps, steps], -1)
    A, B = both[..., None] * m.full(), both * torch.cat([m.B, m.B.conj()], -1)
    identity = torch.eye(2 * N, dtype=A.dtype)
    state = torch.linalg.solve(identity - A / 2, identity + A / 2)
    inputs = torch.linalg.solve(identity - A / 2, B)
    output = torch.cat([m.C, m.C.conj()], -1)
    K = []
    for _ in range(40):
        K.append(torch.einsum("chn,hn->ch", output, inputs).real)
        inputs = torch.einsum("hmn,hn->hm", state, inputs)
    assert relative_error(stepped_kernel(found, 40), torch.stack(K, -1)) < 1e-12
    radius = torch.linalg.eigvals(state).abs().max(1).values
    torch.testing.assert_close((-found.rate).exp().max(1).values, radius, rtol=1e-12, atol=0)


def test_a_band_limit_silences_entries_of_the_folded_c(read_model: Read) -> None:
    m, limit = model(), 0.1
    (found,) = read_model(v4(m, 32), {"bandlimit": limit})
    inside = m.step[:, None] * m.diagonal.imag.repeat(2, 1).abs() / (2 * math.pi) < limit / 2
    assert 0 < int(inside.sum()) < inside.numel()
    assert relative_error(stepped_kernel(found, 40), m._replace(C=m.C * inside).kernel(32, 40)) < 1e-12


@pytest.mark.parametrize("states", [4, 16])
def test_legs_has_the_eigenvalues_minus_one_to_minus_n(states: int, read_model: Read) -> None:
    """HiPPO-LegS is lower triangular with −1 … −N on its diagonal, and normal plus the rank one ½(2n+1)."""
    n = torch.arange(states, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    legs = -(torch.tril(root[:, None] * root, -1) + torch.diag(n + 1))
    factor = (n + 0.5).sqrt()
    skew = legs + factor[:, None] * factor + 0.5 * torch.eye(states)
    frequency, basis = torch.linalg.eigh(-1j * skew)
    half = frequency > 0
    P = basis.mH @ factor.to(torch.complex128)
    state = {
        "layer.kernel.inv_dt": torch.full((1, 1), -4.0).double(),
        "layer.kernel.A_real": torch.full((1, states // 2), math.log(0.5)).double(),
        "layer.kernel.A_imag": -frequency[half][None],
        "layer.kernel.P": pairs(P[half][None, None]),
        "layer.kernel.B": pairs(P[half][None, None]),
        "layer.kernel.C": pairs(P[half][None, None]),
        "layer.kernel.l_kernel": torch.tensor(0),
    }
    (found,) = read_model(state)
    step = math.exp(-4)
    expected = -torch.log((1 - step * (n + 1) / 2) / (1 + step * (n + 1) / 2))
    # Their condition number is beyond 1e10 at N = 16; the slowest is the best of them.
    torch.testing.assert_close(found.rate[0].sort().values[:2], expected[:2], rtol=1e-7, atol=0)
    torch.testing.assert_close(found.rate[0].sum(), expected.sum(), rtol=1e-9, atol=0)


def test_a_dense_kernel_is_read_as_it_is(read_model: Read) -> None:
    m = model()
    state = {
        "layer.kernel.inv_dt": m.step.log()[:, None],
        "layer.kernel.A": pairs(m.full()),
        "layer.kernel.B": pairs(torch.cat([m.B, m.B.conj()], -1)),
        "layer.kernel.C": pairs(torch.cat([m.C, m.C.conj()], -1)),
    }
    (found,) = read_model(state)
    assert relative_error(stepped_kernel(found, 60), m.kernel(0, 60)) < 1e-12
    assert_spectrum(found, m)


def test_a_companion_kernel_is_a_shift_with_one_learned_column(read_model: Read) -> None:
    column, B = 0.4 * random(S, N, seed=1), random(S, N, seed=2)
    C = torch.complex(random(COPIES, H, N, seed=3), random(COPIES, H, N, seed=4))
    state = {
        "layer.kernel.inv_dt": torch.zeros(H, 1).double(),
        "layer.kernel.A": pairs(column + 0j),
        "layer.kernel.B": pairs(B + 0j),
        "layer.kernel.C": pairs(C),
    }
    (found,) = read_model(state)
    K = []
    x = B.repeat(2, 1)
    for _ in range(30):
        K.append((C * x).sum(-1).real)
        x = torch.cat([torch.zeros(H, 1), x[:, :-1]], 1) + column.repeat(2, 1) * x[:, -1:]
    assert relative_error(stepped_kernel(found, 30), torch.stack(K, -1)) < 1e-12
    for h in range(H):  # the characteristic polynomial xᴺ − Σ aₖ xᵏ vanishes at every eigenvalue
        z = found.log_eigenvalues[h].exp()
        value = z**N - sum(column[h % S, k] * z**k for k in range(N))
        assert float(value.abs().max()) < 1e-13


def test_float32_weights_agree_with_float32_arithmetic_on_them(read_model: Read) -> None:
    m = model()
    state = {name: value.float() if value.is_floating_point() else value for name, value in v4(m, 0).items()}
    (found,) = read_model(state)
    single = Model(*(x.to(torch.complex64 if x.is_complex() else torch.float32).to(x.dtype) for x in m))
    assert relative_error(stepped_kernel(found, 40), single.kernel(0, 40)) < 1e-6
    assert found.dtype == "float32"


@pytest.mark.slow
def test_weights_that_are_not_finite_are_counted_and_do_not_stop_the_other_layers(
    write_model: Callable[..., Path],
) -> None:
    broken = v4(model(), 32, "layers.1.kernel.")
    broken["layers.1.kernel.P"][0, 1, 0, 0] = math.nan
    good, bad = diagnose(write_model(v4(model(), 32, "layers.0.kernel.") | broken)).layers
    assert (good.nonfinite, bad.nonfinite) == (0, H // S * 2 * N)
