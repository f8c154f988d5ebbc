"""LSTM, GRU and RNN against the modules of torch themselves: their Jacobians, and their cells stepped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from ssmdiag import Recurrence, diagnose, extract_recurrences, read_checkpoint, recognise
from ssmdiag.errors import LayerError
from ssmdiag.probing.clocks import Observed, observing
from ssmdiag.recurrence.clock import Clock
from tests.cuda.same import assert_same
from tests.device import cuda as cuda

IN, HIDDEN, LENGTH = 3, 5, 7
CLOSE: dict[str, float] = {"rtol": 1e-12, "atol": 1e-14}

Read = Callable[[nn.Module], list[Recurrence]]


def drawn(module: nn.Module, scale: float = 0.7) -> Any:
    """Return a float64 module with random weights far from torch's small ones."""
    generator = torch.Generator().manual_seed(len(list(module.parameters())))
    module = module.double().eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(scale * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return module


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(module: nn.Module) -> list[Recurrence]:
        torch.save({f"net.core.{name}": value for name, value in module.state_dict().items()}, tmp_path / "model.pt")
        return extract_recurrences(tmp_path / "model.pt")

    return read


def layers_of(module: Any) -> Iterator[Any]:
    """Yield every direction of every layer as a module of one layer and one direction with its weights."""
    for number in range(module.num_layers):
        for end in ("", "_reverse") if module.bidirectional else ("",):
            names = [name for name, _ in module.named_parameters() if name.endswith(f"_l{number}{end}")]
            state = {f"{name.rpartition('_l')[0]}_l0": getattr(module, name) for name in names}
            size, more = state["weight_ih_l0"].shape[1], {"proj_size": module.proj_size} if module.proj_size else {}
            single = type(module)(size, module.hidden_size, bias=module.bias, **more).double()
            single.load_state_dict(state)
            yield single


LSTMS = {
    "one layer": lambda: nn.LSTM(IN, HIDDEN),
    "three layers": lambda: nn.LSTM(IN, HIDDEN, 3),
    "both directions": lambda: nn.LSTM(IN, HIDDEN, 2, bidirectional=True, batch_first=True),
    "projected": lambda: nn.LSTM(IN, HIDDEN, 2, bidirectional=True, proj_size=2),
    "without bias": lambda: nn.LSTM(IN, HIDDEN, bias=False),
}


@pytest.mark.parametrize("name", LSTMS)
def test_decay_of_an_lstm_is_the_slope_of_its_next_cell_in_the_last(name: str, read: Read) -> None:
    module = drawn(LSTMS[name]())
    found = read(module)
    assert {recurrence.family for recurrence in found} == {"lstm"}
    for recurrence, single in zip(found, layers_of(module), strict=True):
        state = torch.zeros(1, 1, single.proj_size or HIDDEN, dtype=torch.float64)
        slope = jacobian(
            lambda cell, single=single, state=state: single(
                torch.zeros(1, 1, single.input_size, dtype=torch.float64), (state, cell[None, None])
            )[1][1].flatten(),
            torch.randn(HIDDEN, dtype=torch.float64),
        )
        torch.testing.assert_close(slope, slope.diagonal().diag(), **CLOSE)
        torch.testing.assert_close(recurrence.log_eigenvalues.real.exp()[:, 0], slope.diagonal(), **CLOSE)
    assert any("no bias" in note for note in found[0].notes) == (name == "without bias")


GRUS = {
    "one layer": lambda: nn.GRU(IN, HIDDEN),
    "both directions": lambda: nn.GRU(IN, HIDDEN, 2, bidirectional=True),
    "without bias": lambda: nn.GRU(IN, HIDDEN, bias=False),
}


@pytest.mark.parametrize("name", GRUS)
def test_decay_of_a_gru_is_the_slope_of_its_next_state_in_the_last_but_for_what_its_matrix_feeds_back(
    name: str, read: Read
) -> None:
    module = drawn(GRUS[name]())
    found = read(module)
    assert {recurrence.family for recurrence in found} == {"gru"}
    for recurrence, single in zip(found, layers_of(module), strict=True):
        with torch.no_grad():
            single.weight_hh_l0.zero_()
        slope = jacobian(
            lambda state, single=single: single(
                torch.zeros(1, 1, single.input_size, dtype=torch.float64), state[None, None]
            )[1].flatten(),
            torch.randn(HIDDEN, dtype=torch.float64),
        )
        torch.testing.assert_close(recurrence.log_eigenvalues.real.exp().flatten().diag(), slope, **CLOSE)


def slopes(single: Any) -> Tensor:
    """Return the Jacobian of the next state in the last, at zero state and input."""
    zero = torch.zeros(1, 1, single.input_size, dtype=torch.float64)
    start = torch.zeros(HIDDEN, dtype=torch.float64)
    return jacobian(lambda state: single(zero, state[None, None])[1].flatten(), start)


def assert_spectrum(recurrence: Recurrence, slope: Tensor) -> None:
    expected = torch.linalg.eigvals(slope)
    found = recurrence.log_eigenvalues[0].exp()
    distances = (found[:, None] - expected[None]).abs()
    assert float(distances.amin(1).max()) < 1e-12
    assert float(distances.amin(0).max()) < 1e-12


@pytest.mark.parametrize("more", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
def test_spectrum_of_an_rnn_is_that_of_its_slope_at_zero(more: dict[str, Any], read: Read) -> None:
    module = drawn(nn.RNN(IN, HIDDEN, **more))
    found = read(module)
    assert {recurrence.family for recurrence in found} == {"rnn"}
    for recurrence, single in zip(found, layers_of(module), strict=True):
        assert_spectrum(recurrence, slopes(single))
        assert recurrence.operating_point is not None
        assert "linearised" in recurrence.operating_point


def test_spectrum_of_a_relu_rnn_is_that_of_its_slope_with_all_units_on(read: Read, tmp_path: Path) -> None:
    module = drawn(nn.RNN(IN, HIDDEN, nonlinearity="relu"))
    with torch.no_grad():
        module.bias_ih_l0.fill_(50.0)
    torch.save(module.state_dict(), tmp_path / "relu.pt")
    (recurrence,) = extract_recurrences(tmp_path / "relu.pt", assume={"nonlinearity": "relu"})
    assert_spectrum(recurrence, slopes(module))


def test_kernel_of_an_rnn_is_how_its_states_move_with_a_small_input(read: Read) -> None:
    module = drawn(nn.RNN(IN, HIDDEN, bias=False))
    (recurrence,) = read(module)
    assert recurrence.layout == "many inputs"
    B, C = recurrence.matrices

    def states(first: Tensor) -> Tensor:
        rest = torch.zeros(LENGTH, 1, IN, dtype=torch.float64)
        output: Tensor = module(torch.cat([first[None, None], rest]))[0][:, 0]
        return output

    own = jacobian(states, torch.zeros(IN, dtype=torch.float64))  # (lag, output, input)
    lags = torch.arange(LENGTH + 1, dtype=torch.float64)
    powers = torch.exp(recurrence.log_eigenvalues[0] * lags[:, None])
    torch.testing.assert_close(torch.einsum("on,tn,ni->toi", C, powers, B).real, own, rtol=1e-10, atol=1e-12)


def test_the_leak_of_an_echo_state_network_is_taken_from_its_settings(tmp_path: Path) -> None:
    reservoir = drawn(nn.RNN(IN, HIDDEN, bias=False), scale=0.3)
    state = {f"reservoir.{name}": value for name, value in reservoir.state_dict().items()}
    torch.save(
        {"state_dict": state, "hyper_parameters": {"leaking_rate": 0.25, "nonlinearity": "tanh"}}, tmp_path / "m.pt"
    )
    (recurrence,) = extract_recurrences(tmp_path / "m.pt")
    zero = torch.zeros(1, 1, IN, dtype=torch.float64)

    def leaky(state: Tensor) -> Tensor:
        fresh: Tensor = reservoir(zero, state[None, None])[1].flatten()
        return 0.75 * state + 0.25 * fresh

    assert_spectrum(recurrence, jacobian(leaky, torch.zeros(HIDDEN, dtype=torch.float64)))


def test_an_rnn_that_leaves_zero_is_not_called_unstable(tmp_path: Path) -> None:
    torch.save(drawn(nn.RNN(IN, HIDDEN, bias=False), scale=2.0).state_dict(), tmp_path / "m.pt")
    result = diagnose(tmp_path / "m.pt")
    (layer,) = result.layers
    assert layer.spectral_radius is not None
    assert layer.spectral_radius > 1.5
    assert not layer.unstable
    assert not [finding for finding in result.findings if finding.severity == "error"]
    assert any("leave zero" in note and "the tanh bounds them" in note for note in layer.notes)


def test_a_shift_register_has_no_kernel_of_exponentials_and_says_so(read: Read) -> None:
    module = drawn(nn.RNN(IN, HIDDEN, bias=False))
    with torch.no_grad():
        module.weight_hh_l0.copy_(torch.diag(torch.ones(HIDDEN - 1, dtype=torch.float64), -1))
    (recurrence,) = read(module)
    assert recurrence.layout == "none"
    assert any("close to each other" in note for note in recurrence.notes)


@pytest.mark.parametrize(
    ("cell", "family"), [(nn.LSTMCell, "lstm"), (nn.GRUCell, "gru"), (nn.RNNCell, "rnn")], ids=["lstm", "gru", "rnn"]
)
def test_a_cell_is_read_as_its_module(cell: Any, family: str, read: Read) -> None:
    one, module = drawn(cell(IN, HIDDEN)), {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[family](IN, HIDDEN).double()
    module.load_state_dict({f"{name}_l0": value for name, value in one.state_dict().items()})
    (found,), (expected,) = read(one), read(module)
    assert found.family == expected.family == family
    torch.testing.assert_close(found.log_eigenvalues, expected.log_eigenvalues, rtol=0, atol=0)


def test_layers_of_one_module_are_told_apart_by_name(read: Read) -> None:
    found = read(nn.LSTM(IN, HIDDEN, 2, bidirectional=True))
    assert [recurrence.layer for recurrence in found] == [
        f"net.core ({name})" for name in ("l0", "l0 backward", "l1", "l1 backward")
    ]


def test_tensors_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    state = nn.LSTM(IN, HIDDEN, 2).state_dict()
    del state["weight_ih_l1"]
    torch.save(state, tmp_path / "without.pt")
    with pytest.raises(LayerError, match="weight_ih_l1 is missing"):
        extract_recurrences(tmp_path / "without.pt")
    state = nn.LSTM(IN, HIDDEN, 2).state_dict()
    state["bias_hh_l1"] = torch.zeros(3)
    torch.save(state, tmp_path / "shape.pt")
    with pytest.raises(LayerError, match="bias_hh_l1 has shape"):
        extract_recurrences(tmp_path / "shape.pt")


def test_matrices_of_other_proportions_are_no_lstm(tmp_path: Path) -> None:
    state = {"core.weight_hh_l0": torch.zeros(7, 3), "core.weight_ih_l0": torch.zeros(7, 2)}
    torch.save(state, tmp_path / "m.pt")
    found = recognise(read_checkpoint(tmp_path / "m.pt"))
    assert not found.layers
    assert any("expected (4*hidden hidden)" in miss.reason for miss in found.near_misses)


def observed(module: nn.Module, *arguments: Any) -> tuple[Observed, list[Clock]]:
    clocks: list[Clock] = []
    with torch.no_grad(), observing(module, lambda _, clock: clocks.append(clock)) as found:
        module(*arguments)
    return found, clocks


def stepped(module: Any, input: Tensor, start: Tensor | None = None) -> list[Tensor]:
    """Return the gate that keeps of every layer's forward direction, (batch, time, channel), by torch's cells.

    The gate of an LSTM is the slope of its next cell in the last; a GRU's follows from its next state where the
    candidate is known from a state of its own.
    """
    gates, ways = [], 2 if module.bidirectional else 1
    for number in range(module.num_layers):
        outputs = []
        for way, end in enumerate(("", "_reverse")[:ways]):
            kind = nn.LSTMCell if isinstance(module, nn.LSTM) else nn.GRUCell
            cell = kind(input.shape[-1], module.hidden_size).double()
            cell.load_state_dict(
                {name: getattr(module, f"{name}_l{number}{end}") for name, _ in cell.named_parameters()}
            )
            first = torch.zeros(len(input), module.hidden_size, dtype=torch.float64)
            state = first if start is None else start[number * ways + way]
            own, kept = [], []
            memory = first
            for x in (input.flip(1) if way else input).unbind(1):
                if isinstance(cell, nn.LSTMCell):
                    memory = memory.clone().requires_grad_()
                    state, after = cell(x, (state, memory))
                    (slope,) = torch.autograd.grad(after.sum(), memory)
                    state, memory = state.detach(), after.detach()
                else:
                    W, U, b, c = (part.chunk(3)[1] for part in cell.parameters())
                    slope = torch.sigmoid(x @ W.T + b + state @ U.T + c)
                    state = cell(x, state).detach()
                own.append(state)
                kept.append(slope.detach())
            output = torch.stack(own, 1)
            outputs.append(output.flip(1) if way else output)
            gates += [] if way else [torch.stack(kept, 1)]
        input = torch.cat(outputs, -1)
    return gates


CLOCKED = {
    "LSTM": lambda: nn.LSTM(IN, HIDDEN, batch_first=True),
    "LSTM, two layers, both directions": lambda: nn.LSTM(IN, HIDDEN, 2, batch_first=True, bidirectional=True),
    "GRU": lambda: nn.GRU(IN, HIDDEN, batch_first=True),
    "GRU, two layers, both directions": lambda: nn.GRU(IN, HIDDEN, 2, batch_first=True, bidirectional=True),
}


@pytest.mark.parametrize("name", CLOCKED)
def test_clock_is_the_gate_of_the_cells_stepped_token_by_token(name: str) -> None:
    module = drawn(CLOCKED[name]())
    input = torch.randn(2, LENGTH, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found, (clock,) = observed(nn.Sequential(module), input)
    assert not found.without_clock
    torch.testing.assert_close((-clock.step).exp(), torch.cat(stepped(module, input), -1), **CLOSE)
    assert (clock.rate == 1).all()


def test_clock_of_a_module_with_time_first_has_its_time_where_others_have_it() -> None:
    module = drawn(nn.GRU(IN, HIDDEN))
    input = torch.randn(LENGTH, 1, IN, dtype=torch.float64)
    _, (clock,) = observed(module, input)
    torch.testing.assert_close((-clock.step).exp(), stepped(module, input.transpose(0, 1))[0], **CLOSE)


def test_clock_starts_from_the_state_the_module_is_given() -> None:
    module = drawn(nn.GRU(IN, HIDDEN, 2, batch_first=True))
    input, start = torch.randn(2, LENGTH, IN, dtype=torch.float64), torch.randn(2, 2, HIDDEN, dtype=torch.float64)
    _, (clock,) = observed(module, input, start)
    torch.testing.assert_close((-clock.step).exp(), torch.cat(stepped(module, input, start), -1), **CLOSE)


def test_clock_of_a_projected_lstm_reads_the_projected_state() -> None:
    module = drawn(nn.LSTM(IN, HIDDEN, batch_first=True, proj_size=2))
    input = torch.randn(2, LENGTH, IN, dtype=torch.float64)
    _, (clock,) = observed(module, input)
    rows = slice(HIDDEN, 2 * HIDDEN)
    with torch.no_grad():
        output = module(input)[0]
        before = torch.cat([torch.zeros(2, 1, 2, dtype=torch.float64), output[:, :-1]], 1)
        gate = input @ module.weight_ih_l0[rows].T + before @ module.weight_hh_l0[rows].T
        gate = (gate + module.bias_ih_l0[rows] + module.bias_hh_l0[rows]).sigmoid()
    torch.testing.assert_close((-clock.step).exp(), gate, **CLOSE)


def test_an_rnn_and_a_cell_are_reported_as_not_observed() -> None:
    found, clocks = observed(drawn(nn.RNN(IN, HIDDEN)), torch.randn(LENGTH, 1, IN, dtype=torch.float64))
    assert not clocks
    assert [one.family.name for one in found.without_clock] == ["rnn"]
    found, clocks = observed(drawn(nn.LSTMCell(IN, HIDDEN)), torch.randn(2, IN, dtype=torch.float64))
    assert not clocks
    assert "without an input" in found.without_clock[0].why


@pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN")  # of the module that moves to a pretended GPU
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_is_read_and_observed_is_the_same_on_a_gpu(kind: Any, tmp_path: Path, cuda: str) -> None:
    module = drawn(kind(IN, HIDDEN, 2, bidirectional=True, batch_first=True))
    torch.save(module.state_dict(), tmp_path / "m.pt")
    away, home = (extract_recurrences(tmp_path / "m.pt", device=device) for device in (cuda, "cpu"))
    for one, other in zip(away, home, strict=True):
        assert one.log_eigenvalues.is_cuda
        assert_same([one.log_eigenvalues.real.sort().values], [other.log_eigenvalues.real.sort().values])
    if kind is nn.RNN:
        return
    input = torch.randn(2, LENGTH, IN, dtype=torch.float64)
    _, (expected,) = observed(module, input)
    _, (clock,) = observed(module.to(cuda), input.to(cuda))
    assert clock.step.is_cuda
    assert_same([clock.step], [expected.step])
