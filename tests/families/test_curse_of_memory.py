"""Curse-of-memory RNNs against their own update, stepped from an impulse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssmdiag.recurrence.modal import Recurrence
from tests.reference import relative_error, stepped_kernel

H, LAGS = 5, 25

Read = Callable[..., list[Recurrence]]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def responses(update: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Step h ← update(h, x) from an impulse in each input; (input, lag, unit)."""
    rows = []
    for unit in range(H):
        state, inputs = torch.zeros(H, dtype=torch.float64), torch.eye(H, dtype=torch.float64)[unit]
        row = []
        for t in range(LAGS):
            state = update(state, inputs if t == 0 else torch.zeros_like(inputs))
            row.append(state)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def elementwise(rows: Tensor) -> Tensor:
    return rows.diagonal(dim1=0, dim2=2).T[None]


@pytest.mark.parametrize("dt", [1.0, 0.33, 0.07])
@pytest.mark.parametrize("training", [True, False])
def test_simple_diagonal_rnn_decays_by_one_minus_its_step_times_its_weight(
    dt: float, training: bool, read_model: Read
) -> None:
    w = random(H, seed=1)
    (found,) = read_model({"net.W.weight": w}, {"net": {"dt": dt, "training": training}})
    rate = torch.relu(w) if training else w
    K = elementwise(responses(lambda h, x: h + dt * (x - rate * h)))
    assert relative_error(stepped_kernel(found, LAGS), K) < 1e-13
    assert (found.layer, found.channels, found.modes) == ("net", H, 1)


def test_a_rate_that_relu_holds_at_zero_is_on_the_boundary_and_not_past_it(read_model: Read) -> None:
    w = torch.tensor([-0.3, -2.0, 0.4, 0.0, 0.9], dtype=torch.float64)
    (one_each,) = read_model({"net.W.weight": w})
    assert one_each.rate.flatten().tolist() == pytest.approx([0, 0, -math.log(0.6), 0, -math.log(0.1)])


def test_a_weight_past_one_turns_the_decay_negative(read_model: Read) -> None:
    (found,) = read_model({"net.W.weight": torch.tensor([1.5, 1.0], dtype=torch.float64)})
    assert found.log_eigenvalues[0, 0].imag == pytest.approx(math.pi)
    assert found.rate[0, 0] == pytest.approx(math.log(2))
    assert found.rate[1, 0] == math.inf


@pytest.mark.parametrize("dt", [1.0, 0.33, 0.07])
def test_their_lru_normalises_its_input(dt: float, read_model: Read) -> None:
    w = random(H, seed=2)
    (found,) = read_model({"net.W.weight": w}, {"dt": dt}, **{"class": "lru"})
    decay = torch.exp(-torch.exp(w)) - 1
    K = elementwise(responses(lambda h, x: h + dt * (decay * h + (1 - decay**2).sqrt() * x)))
    assert relative_error(stepped_kernel(found, LAGS), K) < 1e-12


def test_their_lru_keeps_the_rate_of_a_mode_that_forgets_at_once(read_model: Read) -> None:
    (found,) = read_model({"net.W.weight": torch.tensor([4.0, -40.0]).double()}, **{"class": "lru"})
    torch.testing.assert_close(found.rate[:, 0], torch.tensor([4.0, -40.0]).double().exp(), rtol=1e-15, atol=0)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("dt", [1.0, 0.33])
@pytest.mark.parametrize("kind", ["simplernn", "softplusrnn"])
@pytest.mark.parametrize("training", [True, False])
def test_coupled_units_have_the_impulse_response_of_their_update(
    kind: str, dt: float, training: bool, read_model: Read
) -> None:
    w, basis = random(H, seed=3), torch.linalg.qr(random(H, H, seed=4)).Q + 0.1 * random(H, H, seed=5)
    (found,) = read_model(
        {"net.W.weight": w, "net.P.weight": basis}, {"dt": dt, "training": training}, **{"class": kind}
    )
    simple = torch.relu(w) if training else w
    rate = torch.log(1 + torch.exp(w)) if kind == "softplusrnn" else simple
    expected = responses(lambda h, x: h + dt * (x - (rate * (h @ basis.T)) @ basis))
    assert found.input_matrix is not None
    assert found.output_matrix is not None
    decay = found.log_eigenvalues[0].exp()
    K = [((found.output_matrix * decay**t) @ found.input_matrix).real.T for t in range(LAGS)]
    assert relative_error(torch.stack(K, 1), expected) < 1e-12


def test_a_coupled_rate_of_zero_does_not_round_past_the_boundary(read_model: Read) -> None:
    w = torch.tensor([-0.3, -2.0, 0.4, -0.1, 0.9], dtype=torch.float64)
    (found,) = read_model({"net.W.weight": w, "net.P.weight": torch.linalg.qr(random(H, H, seed=6)).Q})
    assert sorted(found.rate[0].tolist()) == pytest.approx([0, 0, 0, -math.log(0.6), -math.log(0.1)])
    assert int((found.rate == 0).sum()) == 3


def test_the_linear_core_between_the_mlps_of_a_simple_ssm_is_read_and_said_to_be_that(read_model: Read) -> None:
    state = {"net.W.weight": random(H, seed=1), "net.P.weight": torch.linalg.qr(random(H, H, seed=2)).Q}
    state["net.g.linear1.weight"] = random(H, H, seed=3)
    (found,) = read_model(state)
    assert any("SimpleSSM" in note for note in found.notes)


def test_any_number_is_a_step(read_model: Read) -> None:
    w = torch.tensor([0.5], dtype=torch.float64)
    (found,) = read_model({"net.W.weight": w}, dt="0.125")
    assert float(found.rate) == pytest.approx(-math.log1p(-0.0625), rel=1e-14)
    assert found.assumptions[1].source == "--assume"


def test_weights_that_are_not_finite_are_modes_that_are_not_finite(read_model: Read) -> None:
    w = random(H, seed=1)
    w[0] = math.nan
    (found,) = read_model({"net.W.weight": w, "net.P.weight": torch.eye(H, dtype=torch.float64)})
    assert bool(found.rate.isnan().all())


def test_a_single_precision_vector_called_w_is_not_claimed(write_model: Callable[..., object]) -> None:
    from ssmdiag import read_checkpoint, recognise

    found = recognise(read_checkpoint(write_model({"norm.W.weight": torch.ones(H)})))  # type: ignore[arg-type]
    assert found.layers == ()
