"""A real trained Mamba: the six blocks that the typeseg package carries, against its own code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typeseg
from typeseg import _mamba_kernel as original

from ssmdiag.diagnosis import Diagnosis, diagnose, extract_recurrences
from ssmdiag.recurrence.modal import Recurrence
from ssmdiag.rules.selection import select_rules
from tests.tolerances import EIGENVALUES, RELATIVE

CHECKPOINT = Path(typeseg.__file__).parent / "data" / "mamba_al.npz"
BLOCKS, CHANNELS, MODES = 6, 256, 16


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """The weights under the names the package's own code asks for."""
    with np.load(CHECKPOINT) as file:
        return {name.replace("__", "/"): file[name] for name in file.files}


@pytest.fixture(scope="module")
def recurrences() -> list[Recurrence]:
    return extract_recurrences(CHECKPOINT)


def discretised(weights: dict[str, np.ndarray], block: int, dtype: type) -> list[np.ndarray]:
    """Return Δ_t A at the last of three tokens, as the package's block hands it to each of its two scans."""
    prefix = f"CheckpointMambaBlock1D_{block}/"
    closed = {name: value.astype(dtype) for name, value in weights.items() if name.startswith(prefix)}
    closed[f"{prefix}Dense_2/kernel"] = 0 * closed[f"{prefix}Dense_2/kernel"]  # the gate stays at its bias
    seen: list[np.ndarray] = []

    def scan(xp: object, u: np.ndarray, dt: np.ndarray, B: object, C: object, A: np.ndarray, D: object) -> np.ndarray:
        seen.append(dt[-1][:, None] * A)
        return 0 * u

    x = np.random.default_rng(block).standard_normal((3, CHANNELS)).astype(dtype)
    original._mamba_block(np, closed, block, x, d_state=MODES, dt_rank=16, d_conv=4, scan=scan)
    return seen


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float64, RELATIVE["float64"]), (np.float32, EIGENVALUES)], ids=["float64", "float32"]
)
def test_decays_equal_those_of_the_packages_own_block(
    weights: dict[str, np.ndarray], recurrences: list[Recurrence], dtype: type, tolerance: float
) -> None:
    assert len(recurrences) == BLOCKS
    for block, recurrence in enumerate(recurrences):
        assert recurrence.layer == f"CheckpointMambaBlock1D_{block}"
        assert recurrence.log_eigenvalues.shape == (CHANNELS, MODES)
        forward, backward = discretised(weights, block, dtype)
        np.testing.assert_allclose(recurrence.log_eigenvalues.real.numpy(), forward, rtol=tolerance, atol=0)
        np.testing.assert_array_equal(forward, backward)


def test_report_says_that_the_blocks_scan_both_ways(recurrences: list[Recurrence]) -> None:
    assert all(any("both ways" in note for note in recurrence.notes) for recurrence in recurrences)


def test_every_block_forgets_within_a_few_characters(recurrences: list[Recurrence]) -> None:
    medians = [float(recurrence.time_constant.median()) for recurrence in recurrences]
    longest = [float(recurrence.time_constant.max()) for recurrence in recurrences]
    np.testing.assert_allclose(medians, [1.45, 1.46, 1.50, 1.49, 1.51, 1.54], atol=0.006)
    np.testing.assert_allclose(longest, [1.71, 1.68, 1.82, 1.81, 1.79, 2.53], atol=0.006)


def test_the_usual_initialisation_was_never_applied(recurrences: list[Recurrence]) -> None:
    for recurrence in recurrences:
        log_rate, bias = (weight.values.numpy() for weight in recurrence.weights)
        usual = np.log(np.arange(1, MODES + 1))  # S4D-Real
        assert np.abs(log_rate - usual).mean() == pytest.approx(1.945, abs=0.025)
        assert -1.143 < (-np.exp(log_rate)).min() < (-np.exp(log_rate)).max() < -0.608
        step = np.logaddexp(0, bias)
        assert 0.626 < step.min() < np.log(2) < step.max() < 0.766  # and not in [0.001, 0.1]


def test_the_states_of_a_channel_share_one_time_scale(recurrences: list[Recurrence]) -> None:
    spread = [float((r.rate.std(dim=1, correction=0) / r.rate.mean(dim=1)).mean()) for r in recurrences]
    np.testing.assert_allclose(spread, [0.0324, 0.0288, 0.0279, 0.0259, 0.0236, 0.0266], atol=5e-5)


def test_reading_the_memory_takes_a_small_part_of_the_file() -> None:
    report = diagnose(CHECKPOINT, rules=select_rules(select=["SSM1"]))
    assert report.exit_code() == 0
    assert report.bytes_read == BLOCKS * CHANNELS * (MODES + 1) * 4
    assert report.bytes_read < report.size / 40
    assert not report.unrecognised


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose(CHECKPOINT)


def test_all_rules_together_read_a_small_part_of_the_file(diagnosis: Diagnosis) -> None:
    assert diagnosis.bytes_read < diagnosis.size / 8


def test_the_trained_file_shows_three_faults_and_no_other(diagnosis: Diagnosis) -> None:
    """Its states share one time scale, so count for few, and its Δ was never set to the usual range: in all blocks."""
    found = [(f.code, f.severity, f.layer) for f in diagnosis.findings if f.severity != "note"]
    expected = [
        (code, "warning", f"CheckpointMambaBlock1D_{block}")
        for code in ("SSM205", "SSM206", "SSM404")
        for block in range(BLOCKS)
    ]
    assert found == expected
