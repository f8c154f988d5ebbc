"""Conversions that keep a memory are proven, those that change it are caught with the layer, mode and values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ssmdiag.compare.conversion import Outcome, default_tolerance, log_lags, prove_conversion, prove_recurrence
from ssmdiag.compare.spectrum_matching import match_spectra, relative_difference
from ssmdiag.compare.steering import SteeringDifference, compare_weights, rounding
from ssmdiag.diagnosis import extract_recurrences
from ssmdiag.errors import ConfigurationError
from ssmdiag.families.mapfile import read_map
from ssmdiag.recurrence.discretisation import as_complex
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence
from tests.compare.test_comparison import EXAMPLES, base
from tests.compare.test_comparison import mamba as mamba_at_rest

S4D = EXAMPLES / "s4d-digits" / "step-02000.safetensors"
LRU = EXAMPLES / "lru-digits" / "step-02000.safetensors"


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def mamba(log_rates: dict[str, torch.Tensor], *, prefix: str = "layers.{}.") -> dict[str, torch.Tensor]:
    """Return a Mamba of these A_log, with what steers them by the input."""
    state = mamba_at_rest(log_rates, prefix=prefix)
    for number, (name, rates) in enumerate(log_rates.items()):
        generator = torch.Generator().manual_seed(number)
        channels, modes = rates.shape
        projections = {"dt_proj": (channels, 3), "x_proj": (3 + 2 * modes, channels), "in_proj": (2 * channels, 5)}
        for local, shape in {**projections, "conv1d": (channels, 1, 4)}.items():
            state[f"{prefix.format(name)}{local}.weight"] = torch.randn(shape, generator=generator)
    return state


def layers() -> dict[str, torch.Tensor]:
    return {str(i): base(i) for i in range(3)}


def recurrence(spectrum: torch.Tensor, **fields: object) -> Recurrence:
    return Recurrence(
        layer="x", family="x", spelling="x", log_eigenvalues=as_complex(spectrum), time_invariant=True, **fields
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [S4D, LRU])
def test_a_copy_is_proven_to_the_last_bit(path: Path, tmp_path: Path) -> None:
    # LRU's config.json names the model; S4D needs none.
    proof = prove_conversion(path, save(tmp_path / "copy.safetensors", load_file(path)))
    assert proof.proven
    assert proof.exit_code() == 0
    for layer in proof.layers:
        assert layer.outcome is Outcome.SAME
        assert layer.spectrum is not None
        assert layer.kernel is not None
        assert (layer.spectrum.value, layer.kernel.value) == (0.0, 0.0)


def test_two_steps_of_a_run_differ_and_the_mode_is_named(tmp_path: Path) -> None:
    proof = prove_conversion(S4D.with_name("step-01500.safetensors"), S4D)
    assert proof.exit_code() == 1
    for layer, one, other in zip(
        proof.layers,
        extract_recurrences(S4D.with_name("step-01500.safetensors")),
        extract_recurrences(S4D),
        strict=True,
    ):
        assert layer.outcome is Outcome.DIFFERS
        worst = layer.spectrum
        assert worst is not None
        assert worst.a == complex(one.log_eigenvalues[worst.channel, worst.at])
        assert worst.b == complex(other.log_eigenvalues[worst.channel, worst.at])


def test_layers_under_other_names_are_matched_in_order(tmp_path: Path) -> None:
    a = save(tmp_path / "a.safetensors", mamba(layers()))
    b = save(tmp_path / "b.safetensors", mamba(layers(), prefix="model.blocks.{}.mixer."))
    proof = prove_conversion(a, b)
    assert proof.proven
    assert [(layer.a, layer.b) for layer in proof.layers][2] == ("layers.2", "model.blocks.2.mixer")


def test_layers_of_one_name_are_matched_by_it_whatever_their_order(tmp_path: Path) -> None:
    state = mamba(layers())
    swapped = mamba({"0": base(1), "1": base(0), "2": base(2)})
    proof = prove_conversion(save(tmp_path / "a.safetensors", state), save(tmp_path / "b.safetensors", swapped))
    assert [layer.proven for layer in proof.layers] == [False, False, True]


def test_a_bfloat16_copy_is_within_what_rounding_explains_and_the_difference_is_one_of_rates(tmp_path: Path) -> None:
    state = mamba(layers())
    cast = {name: tensor.bfloat16() for name, tensor in state.items()}
    a, b = save(tmp_path / "a.safetensors", state), save(tmp_path / "b.safetensors", cast)
    proof = prove_conversion(a, b)
    assert proof.proven
    for layer, one, other in zip(proof.layers, extract_recurrences(a), extract_recurrences(b), strict=True):
        assert (layer.dtypes, layer.tolerance) == (("float32", "bfloat16"), 0.05)
        largest = ((one.rate - other.rate).abs() / torch.maximum(one.rate, other.rate)).max()
        assert layer.spectrum is not None
        assert layer.spectrum.value == pytest.approx(float(largest))
        assert 1e-3 < layer.spectrum.value < 0.05
    assert prove_conversion(a, b, tolerance=1e-3).exit_code() == 1


@pytest.mark.parametrize("tolerance", [1.0, math.inf, math.nan, -0.1])
def test_a_tolerance_that_lets_everything_pass_is_refused(tolerance: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="proves nothing"):
        prove_conversion(tmp_path / "a", tmp_path / "b", tolerance=tolerance)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_default_tolerance_covers_rounding_of_every_usual_weight(dtype: str) -> None:
    # A_log to log 256 and a softplus bias down to Δ = 1e-4, at their worst together.
    torch_dtype = getattr(torch, dtype)
    a_log = torch.linspace(0, math.log(256), 2001, dtype=torch.float64)
    bias = torch.linspace(math.log(1e-4), 1, 2001, dtype=torch.float64)

    def moved(weights: torch.Tensor, log_of_map: torch.Tensor, rounded: torch.Tensor) -> float:
        return float((log_of_map - rounded).abs().max())

    rate = moved(a_log, a_log, a_log.to(torch_dtype).double())
    soft = torch.nn.functional.softplus
    step = moved(bias, soft(bias).log(), soft(bias.to(torch_dtype).double()).log())
    assert math.expm1(rate + step) < default_tolerance(dtype, "float32")


def test_same_types_on_both_sides_leave_nothing_to_rounding() -> None:
    assert default_tolerance("bfloat16", "bfloat16") == 1e-3


@pytest.mark.parametrize("path", [S4D, LRU])
def test_modes_in_another_order_are_the_same_memory(path: Path) -> None:
    for one in extract_recurrences(path):
        order = torch.randperm(one.modes, generator=torch.Generator().manual_seed(1))
        assert one.input_matrix is not None
        assert one.output_matrix is not None
        many = one.layout == "many inputs"
        other = recurrence(
            one.log_eigenvalues[:, order],
            conjugate_pairs=one.conjugate_pairs,
            kernel_factor=one.kernel_factor,
            input_matrix=one.input_matrix[order] if many else one.input_matrix[:, order],
            output_matrix=one.output_matrix[..., order],
        )
        proof = prove_recurrence(one, other, 1e-9, log_lags(64))
        assert proof.outcome is Outcome.REORDERED
        assert proof.kernel is not None
        assert proof.kernel.value < 1e-12


@pytest.mark.parametrize("path", [S4D, LRU])
def test_b_and_c_on_the_wrong_modes_are_caught_by_the_kernel(path: Path) -> None:
    for one in extract_recurrences(path):
        assert one.input_matrix is not None
        many = one.layout == "many inputs"
        other = recurrence(
            one.log_eigenvalues,
            conjugate_pairs=one.conjugate_pairs,
            kernel_factor=one.kernel_factor,
            input_matrix=one.input_matrix.roll(1, 0 if many else 1),
            output_matrix=one.output_matrix,
        )
        proof = prove_recurrence(one, other, None, log_lags(64))
        assert proof.outcome is Outcome.DIFFERS
        assert proof.spectrum is not None
        assert proof.spectrum.value == 0
        assert proof.kernel is not None
        assert proof.kernel.value > 0.01


@pytest.mark.one_in(3)
@pytest.mark.parametrize("path", [S4D, LRU])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_output_that_is_not_finite_on_one_side_is_a_difference(path: Path, value: float) -> None:
    one = extract_recurrences(path)[0]
    assert one.output_matrix is not None
    C = one.output_matrix.clone()
    C.flatten()[0] = value
    for a, b in ((one, replace(one, output_matrix=C)), (replace(one, output_matrix=C), one)):
        proof = prove_recurrence(a, b, None, log_lags(64))
        assert proof.outcome is Outcome.DIFFERS
        assert proof.kernel is not None
        assert proof.kernel.value == math.inf


def test_b_scaled_up_and_c_down_is_the_same_memory() -> None:
    for one in extract_recurrences(S4D):
        assert one.input_matrix is not None
        assert one.output_matrix is not None
        other = recurrence(
            one.log_eigenvalues,
            conjugate_pairs=True,
            kernel_factor=one.kernel_factor,
            input_matrix=8 * one.input_matrix,
            output_matrix=one.output_matrix / 8,
        )
        assert prove_recurrence(one, other, 1e-12, log_lags(64)).outcome is Outcome.SAME


def test_the_other_half_of_conjugate_pairs_is_the_same_memory() -> None:
    for one in extract_recurrences(S4D):
        lower = recurrence(one.log_eigenvalues.conj(), conjugate_pairs=True)
        assert prove_recurrence(one, lower, 1e-12, log_lags(64)).proven
        both = recurrence(torch.cat([one.log_eigenvalues, one.log_eigenvalues.conj()], 1))
        assert prove_recurrence(one, both, 1e-12, log_lags(64)).proven
        wrong = recurrence(torch.cat([one.log_eigenvalues, one.log_eigenvalues], 1))
        assert not prove_recurrence(one, wrong, 1e-3, log_lags(64)).proven


def test_channels_in_another_order_are_the_same_memory_only_with_b_and_c_in_that_order() -> None:
    for one in extract_recurrences(S4D):
        order = torch.randperm(one.channels, generator=torch.Generator().manual_seed(2))
        assert one.input_matrix is not None
        assert one.output_matrix is not None
        moved = {
            "conjugate_pairs": True,
            "kernel_factor": one.kernel_factor,
            "input_matrix": one.input_matrix.expand(one.channels, -1)[order],
            "output_matrix": one.output_matrix[:, order],
        }
        proof = prove_recurrence(one, recurrence(one.log_eigenvalues[order], **moved), 1e-9, log_lags(64))
        assert proof.outcome is Outcome.REORDERED
        assert any("channels in another order" in note for note in proof.notes)
        moved["output_matrix"] = one.output_matrix
        assert not prove_recurrence(one, recurrence(one.log_eigenvalues[order], **moved), 1e-3, log_lags(64)).proven


@pytest.mark.parametrize("tiled", [False, True])
def test_a_head_repeated_over_its_channels_is_the_same_memory(tiled: bool) -> None:
    heads = torch.linspace(0.01, 2, 6, dtype=torch.float64)[:, None]
    wide = heads.repeat(4, 3) if tiled else heads.repeat_interleave(4, 0).repeat(1, 3)
    proof = prove_recurrence(recurrence(-heads), recurrence(-wide), 1e-12, [0, 1])
    assert proof.proven
    assert proof.notes == ("the second repeats channels 4 times and modes 3 times",)
    wide[5, 1] *= 1.01
    assert not prove_recurrence(recurrence(-heads), recurrence(-wide), 1e-3, [0, 1]).proven


def test_shapes_that_do_not_fit_are_said(tmp_path: Path) -> None:
    a = save(tmp_path / "a.safetensors", mamba({"0": base(), "1": base()}))
    b = save(tmp_path / "b.safetensors", mamba({"0": base(), "1": base()[:, :3], "2": base()}))
    proof = prove_conversion(a, b)
    assert [layer.outcome for layer in proof.layers] == [Outcome.SAME, Outcome.DIFFERS, Outcome.MISSING]
    assert "24 × 4 and 24 × 3" in proof.layers[1].notes[0]
    assert (proof.layers[2].a, proof.layers[2].b) == (None, "layers.2")
    assert proof.exit_code() == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_proven_unless_both_forget_at_once(value: float) -> None:
    spectrum = torch.full((2, 3), -0.1, dtype=torch.float64)
    broken = spectrum.clone()
    broken[1, 2] = value
    assert not prove_recurrence(recurrence(spectrum), recurrence(broken), 1e9, [0, 1]).proven
    both = prove_recurrence(recurrence(broken), recurrence(broken.clone()), 1e-3, [0, 1])
    assert both.proven is (not math.isnan(value))


def test_a_part_that_cannot_be_read_leaves_the_proof_open(tmp_path: Path) -> None:
    state = mamba(layers())
    a = save(tmp_path / "a.safetensors", state)
    b = save(tmp_path / "b.safetensors", state | {"layers.1.dt_proj.bias": torch.zeros(7)})
    proof = prove_conversion(a, b)
    assert len(proof.problems) == 1
    assert (proof.proven, proof.exit_code()) == (False, 2)


def test_a_dense_layer_is_judged_by_its_kernel_where_its_eigenvalues_are_at_the_mercy_of_rounding() -> None:
    # One Jordan block: its eigenvalue splits by ε^(1/12) ≈ 5 % under a rotation that leaves the kernel as it is.
    size = 12
    A = 0.8 * torch.eye(size, dtype=torch.float64) + 0.2 * torch.diag(torch.ones(size - 1, dtype=torch.float64), 1)
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q
    B, C = torch.eye(size, dtype=torch.float64)[-1], torch.eye(size, dtype=torch.float64)[0]

    def dense(matrix: torch.Tensor, inward: torch.Tensor, outward: torch.Tensor) -> Recurrence:
        parts = [as_complex(matrix)[None], as_complex(inward)[None], as_complex(outward)[None, None]]
        return recurrence(torch.linalg.eigvals(matrix).log()[None], dense=lambda: DenseRealisation(*parts))

    one, turned = dense(A, B, C), dense(Q @ A @ Q.T, Q @ B, Q @ C)
    proof = prove_recurrence(one, turned, 1e-9, log_lags(256))
    assert proof.proven
    assert proof.spectrum is not None
    assert proof.spectrum.value > 1e-3
    assert "judged by its kernel" in proof.notes[-1]
    assert not prove_recurrence(one, dense(A, B, 1.001 * C), 1e-4, log_lags(256)).proven


@given(
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
    st.floats(1e-6, 0.3),
)
@settings(max_examples=60, deadline=None)
def test_the_match_of_a_shuffled_perturbed_channel_is_never_worse_than_tolerance_if_an_assignment_exists(
    modes: int, seed: int, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rate = (6 * torch.rand(1, modes, generator=generator, dtype=torch.float64) - 6).exp()
    turn = 3 * torch.rand(1, modes, generator=generator, dtype=torch.float64)
    first = torch.complex(-rate, turn)
    noise = 1 + size * (2 * torch.rand(2, 1, modes, generator=generator, dtype=torch.float64) - 1)
    order = torch.randperm(modes, generator=generator)
    second = torch.complex(-rate * noise[0], turn * noise[1])[:, order]
    apart = relative_difference(first[0][:, None], second[0][None])
    best = _bottleneck(apart)
    found = match_spectra(recurrence(first), recurrence(second), 1e-9).difference
    assert found is not None
    assert found.value >= best - 1e-12
    # Where modes are told apart by far more than they moved, the match is the best there is.
    others = apart.sort(1).values
    if modes == 1 or float(others[:, 1].min()) > 3 * best:
        assert match_spectra(recurrence(first), recurrence(second), best * 1.0001).difference.value <= best * 1.0001  # type: ignore[union-attr]


def _bottleneck(apart: torch.Tensor) -> float:
    """Return the least largest distance of any assignment, by scipy's assignment over thresholds."""
    values = apart.flatten().sort().values.tolist()
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        rows, columns = scipy.optimize.linear_sum_assignment((apart > values[middle]).numpy())
        if not bool((apart[rows, columns] > values[middle]).any()):
            high = middle
        else:
            low = middle + 1
    return float(values[low])


def test_differences_are_relative_and_of_frequencies_modulo_a_turn() -> None:
    a = torch.tensor([-0.1 + 3.1j, -0.1 + 0j, -1e-9 + 0.5j, 0j], dtype=torch.complex128)
    b = torch.tensor([-0.101 - 3.18j, -0.1 + 0.02j, -2e-9 + 0.5j, 0j], dtype=torch.complex128)
    got = relative_difference(a, b).tolist()
    assert got == pytest.approx([0.001 / 0.101, 0.2, 0.5, 0.0], rel=1e-2)


def test_of_a_selective_layer_that_a_map_declares_only_equal_modules_are_proven(tmp_path: Path) -> None:
    declared = tmp_path / "map.toml"
    declared.write_text(
        '[[layer]]\nname = "mine"\nweight = "*.gate.bias"\naxes = "channel"\nmap = "sigmoid"\n'
        'domain = "discrete"\nselective = true\n'
    )
    state = {"net.0.gate.bias": torch.ones(3), "net.0.gate.weight": torch.rand(3, 5), "head.weight": torch.rand(2, 3)}
    a = save(tmp_path / "a.safetensors", state)

    def outcome(**changes: torch.Tensor) -> Outcome:
        changed = state | {name.replace("__", "."): value for name, value in changes.items()}
        b = save(tmp_path / "b.safetensors", changed)
        return prove_conversion(a, b, families=read_map(declared)).layers[0].outcome

    assert outcome() is Outcome.SAME
    assert outcome(head__weight=torch.zeros(2, 3)) is Outcome.SAME
    assert outcome(net__0__gate__weight=torch.zeros(3, 5)) is Outcome.NOMINAL
    assert outcome(net__0__gate__more=torch.zeros(3)) is Outcome.NOMINAL


def test_a_selective_layer_saved_by_itself_is_the_same_memory_as_within_its_model(tmp_path: Path) -> None:
    declared = tmp_path / "map.toml"
    declared.write_text(
        '[[layer]]\nname = "mine"\nweight = "gate"\naxes = "channel"\nmap = "sigmoid"\n'
        'domain = "discrete"\nselective = true\n'
    )
    state = {"gate": torch.ones(3), "weight": torch.rand(3, 5)}
    alone, within = (
        save(tmp_path / f"{number}.safetensors", {f"{prefix}{name}": value for name, value in state.items()})
        for number, prefix in enumerate(("", "net.0."))
    )
    (proof,) = prove_conversion(within, alone, families=read_map(declared)).layers
    assert proof.outcome is Outcome.SAME
    assert proof.steering is not None
    assert {one.b for one in proof.steering.compared} == set(state)


def test_weights_are_compared_within_what_rounding_to_their_types_explains() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(64, 32, generator=generator) * torch.logspace(-8, 1, 64)[:, None]

    def differ(a: torch.Tensor, b: torch.Tensor, share: float = 1.0) -> SteeringDifference:
        stored = [SimpleNamespace(name="w", dtype=str(t.dtype).removeprefix("torch.")) for t in (a, b)]
        allowed = share * rounding(stored[0].dtype, stored[1].dtype)
        return compare_weights(a, b, "step", stored, allowed)  # type: ignore[arg-type]

    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert differ(weights, weights.to(dtype)).within
    found = differ(weights, weights.to(torch.bfloat16), share=0.1)
    assert not found.within
    assert found.weights == (float(weights[found.at]), float(weights.to(torch.bfloat16)[found.at]))
    for place in ((0, 0), (63, 31), (40, 7)):
        moved = weights.clone()
        moved[place] = 1.02 * weights[place] + 0.02 * weights[place[0]].abs().max()
        for dtype in (torch.float32, torch.bfloat16):
            found = differ(weights, moved.to(dtype))
            assert (found.within, found.at) == (False, place)
    assert differ(weights, weights.T).value == math.inf
    assert differ(weights, torch.full_like(weights, math.nan)).value == math.inf
