"""Kernels against closed forms, the stepped recurrence, scipy, 50 digits, and an original module."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssmdiag.families import known_families
from ssmdiag.kernel.kernel import KernelSizeError, compute_kernel, iter_kernel, sample_kernel
from ssmdiag.kernel.powers import powers, powers_minus_one, retention
from ssmdiag.kernel.status import Status
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence
from tests.families.synthetic import config, state_dict
from tests.reference import relative_error, stepped_kernel, stepped_matrix_kernel

Read = Callable[..., list[Recurrence]]
LENGTHS = (1, 2, 3, 100, 1000)


def siso(ell: Tensor, output: Tensor, factor: float = 1.0, gain: Tensor | None = None) -> Recurrence:
    ell = ell.to(torch.complex128)
    return Recurrence(
        "layer",
        "test",
        "test",
        ell,
        time_invariant=True,
        kernel_factor=factor,
        input_matrix=torch.ones_like(ell) if gain is None else gain.to(torch.complex128),
        output_matrix=output.to(torch.complex128),
    )


def random_siso(
    seed: int = 0, channels: int = 5, modes: int = 6, copies: int = 2, slow: float = 1e-3, real: bool = False
) -> Recurrence:
    generator = torch.Generator().manual_seed(seed)
    rate = slow * 10 ** (2 * torch.rand(channels, modes, generator=generator, dtype=torch.float64))
    frequency = 3 * torch.randn(channels, modes, generator=generator, dtype=torch.float64)
    output = torch.randn(copies, channels, modes, generator=generator, dtype=torch.complex128)
    if real:
        return siso(-rate, output)
    return siso(torch.complex(-rate, frequency), output, 2.0)


def random_mimo(seed: int = 0, modes: int = 5, inputs: int = 7, outputs: int = 4) -> Recurrence:
    generator = torch.Generator().manual_seed(seed)
    one = random_siso(seed, channels=1, modes=modes)
    return Recurrence(
        "layer",
        "test",
        "test",
        one.log_eigenvalues,
        time_invariant=True,
        kernel_factor=2.0,
        input_matrix=torch.randn(modes, inputs, generator=generator, dtype=torch.complex128),
        output_matrix=torch.randn(outputs, modes, generator=generator, dtype=torch.complex128),
    )


def random_dense(seed: int = 0, channels: int = 3, states: int = 6, copies: int = 2, real: bool = True) -> Recurrence:
    """A non-normal matrix of spectral radius 0.99."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if real else torch.complex128
    A = torch.randn(channels, states, states, generator=generator, dtype=dtype)
    A = 0.99 * A / torch.linalg.eigvals(A).abs().amax(1)[:, None, None]
    B = torch.randn(channels, states, generator=generator, dtype=dtype)
    C = torch.randn(copies, channels, states, generator=generator, dtype=dtype)
    dense = DenseRealisation(*(x.to(torch.complex128) for x in (A, B, C)))
    return Recurrence("layer", "test", "test", torch.linalg.eigvals(A).log(), time_invariant=True, dense=lambda: dense)


def count_dense(recurrence: Recurrence) -> tuple[Recurrence, list[None]]:
    """Return the recurrence, and a list that grows each time its dense realisation is built."""
    dense, built = recurrence.dense, []

    def counting() -> DenseRealisation:
        assert dense is not None
        built.append(None)
        return dense()

    return replace(recurrence, dense=counting), built


def test_kernel_of_one_real_pole_is_geometric() -> None:
    found = compute_kernel(siso(torch.tensor([[math.log(0.9)]], dtype=torch.float64), torch.full((1, 1, 1), 3.0)), 500)
    np.testing.assert_allclose(found.values[0, 0].numpy(), 3 * 0.9 ** np.arange(500), rtol=1e-13)
    assert found.lags.tolist() == list(range(500))


@pytest.mark.one_in(9)
@pytest.mark.parametrize("product", [None, torch.float32, torch.float64])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("make", [random_siso, random_dense, lambda: random_dense(real=False)])
def test_kernel_is_the_stepped_recurrence(
    make: Callable[[], Recurrence], length: int, product: torch.dtype | None
) -> None:
    recurrence = make()
    expected = stepped_kernel(recurrence, length)
    exact = compute_kernel(recurrence, length)
    assert exact.dtype is torch.float64
    assert exact.values.shape == (2, recurrence.channels, length)
    assert relative_error(exact.values, expected) < 1e-12
    rounded = compute_kernel(recurrence, length, dtype=torch.float32, product=product)
    assert rounded.dtype is torch.float32
    assert relative_error(rounded.values, expected) < 1e-6
    assert relative_error(sample_kernel(recurrence, range(length)), expected) < 1e-12


@pytest.mark.parametrize("length", LENGTHS)
def test_kernel_matrix_is_the_stepped_recurrence(length: int) -> None:
    recurrence = random_mimo()
    expected = stepped_matrix_kernel(recurrence, length).movedim(0, -1)
    found = compute_kernel(recurrence, length)
    assert found.values.shape == (4, 7, length)
    assert found.noise.shape == (4, 7)
    assert relative_error(found.values, expected) < 1e-6
    assert relative_error(sample_kernel(recurrence, range(length)), expected) < 1e-12


@pytest.mark.parametrize(
    "ask",
    [
        lambda r: compute_kernel(r, 40),
        lambda r: list(iter_kernel(r, 40, memory_limit=9000)),
        lambda r: sample_kernel(r, [7]),
    ],
)
def test_a_dense_matrix_is_built_once_for_a_kernel(ask: Callable[[Recurrence], object]) -> None:
    recurrence, built = count_dense(random_dense())
    ask(recurrence)
    assert len(built) == 1


def test_dense_kernel_is_scipys_impulse_response() -> None:
    recurrence = random_dense(copies=1)
    assert recurrence.dense is not None
    d = recurrence.dense()
    found = compute_kernel(recurrence, 200)
    for channel in range(3):
        A, B, C = d.state_matrix[channel].real, d.input_matrix[channel].real, d.output_matrix[0, channel].real
        system = (A.numpy(), B.numpy()[:, None], C.numpy()[None], np.zeros((1, 1)), 1.0)
        _, (response,) = scipy.signal.dimpulse(system, n=201)
        # scipy's response is one step late: it reads the state before the input reaches it.
        np.testing.assert_allclose(found.values[0, channel].numpy(), response[1:, 0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("lag", [10**3, 10**6, 10**9])
def test_kernel_holds_its_digits_at_lags_that_no_loop_reaches(lag: int) -> None:
    rng = np.random.default_rng(0)
    frequency = torch.tensor([0.0, math.pi, -math.pi, *(20 * rng.standard_normal(29))], dtype=torch.float64)
    ell = torch.complex(-torch.tensor(10 ** rng.uniform(-2, 0, 32)) / lag, frequency)[None]
    output = torch.tensor(rng.standard_normal(32) + 1j * rng.standard_normal(32))
    found = float(sample_kernel(siso(ell, output[None, None], 2.0), [lag])[0, 0, 0])
    with mpmath.workdps(50):
        angle = [mpmath.pi * math.copysign(1, w) if abs(w) == math.pi else mpmath.mpf(w) for w in frequency.tolist()]
        terms = [
            2 * (mpmath.mpc(c) * mpmath.exp(mpmath.mpc(r, w) * lag)).real
            for c, r, w in zip(output.tolist(), ell[0].real.tolist(), angle, strict=True)
        ]
        error = abs(mpmath.fsum(terms) - found)
    assert error < 1e-14 * float(sum(abs(term) for term in terms))
    assert error < 1e-6 * abs(found)


def test_float32_kernel_at_a_million_lags_is_within_a_millionth_of_fifty_digits() -> None:
    recurrence = random_siso(3, channels=2, modes=8, copies=1, slow=1e-7)
    found = compute_kernel(recurrence, 10**6 + 1, dtype=torch.float32)
    lags = [0, 1, 777, 10**4, 123_457, 999_999, 10**6]
    assert recurrence.output_matrix is not None
    for channel in range(2):
        for lag in lags:
            with mpmath.workdps(50):
                expected = 2 * mpmath.fsum(
                    (mpmath.mpc(c) * mpmath.exp(mpmath.mpc(e) * lag)).real
                    for c, e in zip(
                        recurrence.output_matrix[0, channel].tolist(),
                        recurrence.log_eigenvalues[channel].tolist(),
                        strict=True,
                    )
                )
            assert abs(float(found.values[0, channel, lag]) - float(expected)) <= 1e-6 * abs(float(expected))


@settings(deadline=None)
@given(
    st.floats(-6, 0).map(lambda e: -(10.0**e)), st.floats(-40, 40), st.integers(0, 10**9), st.sampled_from([1.0, 0.0])
)
def test_powers_and_what_they_lack_to_one_agree_with_fifty_digits(
    rate: float, frequency: float, lag: int, turn: float
) -> None:
    ell = torch.tensor(complex(rate / max(lag, 1), turn * frequency), dtype=torch.complex128)
    at = torch.tensor(lag, dtype=torch.float64)
    with mpmath.workdps(50):
        expected = mpmath.exp(mpmath.mpc(complex(ell)) * lag)
        assert abs(mpmath.mpc(complex(powers(ell, at))) - expected) <= 1e-15 * abs(expected)
        less = abs(mpmath.mpc(complex(powers_minus_one(ell, at))) - (expected - 1))
        assert less <= 1e-15 * abs(expected - 1) + 4e-16 * abs((expected - 1).imag)


def test_float32_products_that_cancel_are_taken_again_in_float64() -> None:
    ell = torch.tensor([[-0.01, -0.01001], [-0.01, -0.5]])
    recurrence = siso(ell, torch.tensor([[[1.0, -1.0], [1.0, -1.0]]]))
    expected = sample_kernel(recurrence, range(1000))
    found = compute_kernel(recurrence, 1000, dtype=torch.float32, product=torch.float32)
    error = (found.values - expected).abs().amax(-1) / expected.abs().amax(-1)
    assert float(error.max()) < 1e-6
    assert float(found.noise[0, 0]) < 1e-14


@pytest.mark.one_in(2)
@pytest.mark.parametrize("product", [torch.float32, torch.float64])
def test_noise_bounds_what_rounding_does(product: torch.dtype) -> None:
    for seed in range(5):
        recurrence = random_siso(seed, modes=16)
        found = compute_kernel(recurrence, 4096, product=product)
        expected = sample_kernel(recurrence, range(4096))
        excess = (found.values.double() - expected).abs() - expected.abs() * 2.0**-23
        assert bool((excess <= found.noise[..., None]).all())


@pytest.mark.parametrize("make", [random_siso, random_mimo, random_dense])
def test_parts_are_the_whole_and_keep_to_their_memory(make: Callable[[], Recurrence]) -> None:
    recurrence = make()
    whole = compute_kernel(recurrence, 1000)
    parts = list(iter_kernel(recurrence, 1000, memory_limit=60_000))
    assert len(parts) > 1
    axis = 0 if recurrence.layout == "many inputs" else 1
    assert relative_error(torch.cat([part.values for part in parts], axis), whole.values) < 1e-7
    assert [part.first for part in parts] == list(np.cumsum([0] + [part.values.shape[axis] for part in parts[:-1]]))
    assert all(part.values.numel() * 4 <= 60_000 for part in parts)
    assert all(part.status.tolist() == [0] * len(part.status) for part in parts)


def test_a_kernel_beyond_memory_is_refused_with_advice() -> None:
    recurrence = random_siso()
    with pytest.raises(KernelSizeError, match=r"5 × 2 × 1,000,000,000 lags takes .* GiB") as caught:
        compute_kernel(recurrence, 10**9)
    assert "sample_kernel" in str(caught.value)
    with pytest.raises(KernelSizeError):
        next(iter_kernel(recurrence, 10**9))


def test_misuse_of_the_interface_is_a_value_error() -> None:
    recurrence = random_siso()
    with pytest.raises(ValueError, match="at least 1"):
        compute_kernel(recurrence, 0)
    with pytest.raises(ValueError, match="float32 or"):
        compute_kernel(recurrence, 5, dtype=torch.bfloat16)
    for lags in ([-1], [0.5], [2**41], [[1]]):
        with pytest.raises(ValueError, match="whole numbers"):
            sample_kernel(recurrence, lags)  # type: ignore[arg-type]


def test_without_an_output_there_is_a_retention_profile_and_no_kernel() -> None:
    ell = torch.tensor([[-0.1 + 1j, -0.3 - 2j]], dtype=torch.complex128)
    bare = Recurrence("gate", "test", "test", ell, time_invariant=False, operating_point="the gates at their bias")
    assert bare.layout == "none"
    with pytest.raises(ValueError, match="retention"):
        compute_kernel(bare, 10)
    with pytest.raises(ValueError, match="retention"):
        sample_kernel(bare, [10])
    profile = sample_kernel(retention(bare), [0, 1, 50])[0, 0]
    expected = [(math.exp(-0.1 * t) + math.exp(-0.3 * t)) / 2 for t in (0, 1, 50)]
    np.testing.assert_allclose(profile.numpy(), expected, rtol=1e-14)


def test_one_broken_channel_among_many_leaves_the_others_alone() -> None:
    recurrence = random_siso(channels=5)
    ell = recurrence.log_eigenvalues.clone()
    ell[1, 2] = math.nan
    ell[2, 0] = 0.001 + 1j
    ell[4] = -math.inf
    assert recurrence.output_matrix is not None
    output = recurrence.output_matrix.clone()
    output[:, 3] = 0
    found = compute_kernel(siso(ell, output, 2.0), 300)
    expected = compute_kernel(recurrence, 300)
    names = [Status(int(s)) for s in found.status]
    assert names == [Status.KNOWN, Status.NOT_FINITE, Status.GROWS, Status.ZERO, Status.KNOWN]
    assert torch.equal(found.values[:, 0], expected.values[:, 0])
    assert bool(found.values[:, 1].isnan().all())
    assert bool((found.values[:, 3] == 0).all())
    assert bool((found.values[:, 4, 1:] == 0).all())
    assert float(found.values[0, 4, 0]) == pytest.approx(float(2 * output[0, 4].sum().real), rel=1e-6)
    assert all(status.sentence for status in Status)


SPELLINGS = [
    pytest.param(family, spelling, id=f"{family.name}:{spelling.name}")
    for family in known_families()
    for spelling in family.spellings
]


@pytest.mark.one_in(16)
@pytest.mark.parametrize(("family", "spelling"), SPELLINGS)
def test_every_family_has_its_stepped_kernel_or_a_retention(family, spelling, read_model: Read) -> None:  # type: ignore[no-untyped-def]
    for recurrence in read_model(state_dict(spelling), config(family, spelling)):
        if recurrence.layout == "none":
            recurrence = retention(recurrence)
        if recurrence.layout == "many inputs":
            expected = stepped_matrix_kernel(recurrence, 40).movedim(0, -1)
        else:
            expected = stepped_kernel(recurrence, 40)
        found = compute_kernel(recurrence, 40).values
        scale = expected.abs().max().clamp(min=1e-300)
        assert float((found - expected).abs().max() / scale) < 1e-9
        assert float((sample_kernel(recurrence, range(40)) - expected).abs().max() / scale) < 1e-9


def test_s5_pytorchs_own_module_responds_as_its_kernel_says(read_model: Read) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # s5-pytorch scripts its scan with torch.jit
        from s5 import S5

        torch.manual_seed(0)
        module = S5(width=4, state_width=8).eval()
        impulse = torch.zeros(4, 64, 4)
        impulse[range(4), 0, range(4)] = 1
        with torch.no_grad():
            response = module(impulse)  # (input, lag, output)
    (recurrence,) = read_model({f"net.{key}": value for key, value in module.state_dict().items()})
    found = compute_kernel(recurrence, 64).values.clone()
    found[:, :, 0] += torch.diag(module.state_dict()["seq.D"])
    assert relative_error(found, response.permute(2, 0, 1)) < 1e-5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-3, 3).map(lambda e: 10.0**e), st.permutations(range(6)))
def test_the_order_of_modes_and_the_scale_between_input_and_output_do_not_matter(
    seed: int, scale: float, order: list[int]
) -> None:
    recurrence = random_siso(seed)
    assert recurrence.output_matrix is not None
    gain = torch.full_like(recurrence.log_eigenvalues, scale)
    other = siso(recurrence.log_eigenvalues[:, order], recurrence.output_matrix[..., order] / scale, 2.0, gain)
    expected = compute_kernel(recurrence, 300).values
    assert relative_error(compute_kernel(other, 300).values, expected) < 1e-13
