"""The map that an unknown file is offered is right, or there is none and the reason is said.

Models here are this suite's own: names as they are found in other people's code, values as trained layers have them,
and the decay computed from what each stands for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssmdiag import diagnose, extract_recurrences, known_families
from ssmdiag.errors import UnknownFamilyError
from ssmdiag.families.mapfile import read_map

State = dict[str, torch.Tensor]
SELECTIVE = True


def uniform(low: float, high: float, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low


def log_uniform(low: float, high: float, *shape: int, seed: int = 0) -> torch.Tensor:
    return uniform(math.log(low), math.log(high), *shape, seed=seed).exp()


def inverse_softplus(r: torch.Tensor) -> torch.Tensor:
    return r + (-(-r).expm1()).log()


def model(tensors: State, module: str = "cell", layers: int = 3) -> State:
    """Return a model whose layers each hold these tensors and what other models have beside them."""
    others = {
        "norm.weight": uniform(0.5, 0.99, 8), "norm.bias": uniform(-1, 1, 8), "mlp.fc.weight": uniform(-1, 1, 8, 32),
        "mlp.fc.bias": uniform(-1, 1, 32), "out.weight": uniform(-1, 1, 8, 8), "ls.gamma": uniform(0.1, 0.9, 8),
        "rotary.inv_freq": uniform(0.1, 1, 4),
    }  # fmt: skip
    state = {f"net.layers.{i}.{module}.{n}".replace("..", "."): v for i in range(layers) for n, v in tensors.items()}
    state |= {f"net.layers.{i}.{n}": v for i in range(layers) for n, v in others.items()}
    return {name: value.clone() for name, value in state.items()}


def offered(state: State, folder: Path) -> tuple[str, str]:
    """Return the map that a file is offered, or "", and what was said above it."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "model.pt")
    with pytest.raises(UnknownFamilyError) as caught:
        diagnose(folder)
    said, _, text = str(caught.value).partition("--map map.toml:\n\n")
    return text, said


def read_through(text: str, folder: Path) -> list[torch.Tensor]:
    (folder / "map.toml").write_text(text, encoding="utf-8")
    families = read_map(folder / "map.toml")
    recurrences = extract_recurrences(folder, families=(*known_families(), *families))
    result = diagnose(folder, families=families, memory=False)
    assert result.guess is not None
    assert result.problems == ()
    return [recurrence.log_eigenvalues for recurrence in recurrences]


def same_modes(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether eigenvalues are equal, where one of a conjugate pair stands for both."""
    found, expected = found.flatten() + 0j, expected.flatten() + 0j
    angle = (found.imag - expected.imag).remainder(2 * math.pi)
    turned = torch.minimum(angle, 2 * math.pi - angle)
    return (
        found.shape == expected.shape
        and torch.allclose(found.real, expected.real, rtol=1e-9)
        and bool((turned < 1e-9).all())
    )


# --- what is offered is right ---------------------------------------------------------------------

A, DT = log_uniform(0.5, 16, 6, 4), log_uniform(1e-3, 0.1, 6)
POLES = uniform(0.7, 0.99, 6, 4) * (1j * uniform(0.1, 3, 6, 4, seed=1)).exp()
FACTORS, RATES = uniform(0.85, 0.999, 6, 4), log_uniform(1e-4, 0.1, 6, 4)
FREQUENCIES = uniform(0, 6, 6, 4, seed=2)

RIGHT: dict[str, tuple[State, torch.Tensor, bool]] = {
    "a rate with a stored step": ({"log_A": A.log(), "log_dt": DT.log()}, -A * DT[:, None], False),
    "complex, continuous": (
        {"log_A_real": A.log(), "log_dt": DT.log(), "freq": FREQUENCIES},
        torch.complex(-A, FREQUENCIES) * DT[:, None],
        False,
    ),
    "A as it is, of a llama.cpp conversion": (
        {"ssm_a": -A[:, 0], "ssm_dt.bias": inverse_softplus(DT), "ssm_alpha.weight": uniform(-1, 1, 6, 8)},
        -A[:, 0] * DT,
        SELECTIVE,
    ),
    "A_log beside a dt_bias": (
        {"A_log": A[:, 0].log(), "dt_bias": inverse_softplus(DT), "to_dt.weight": uniform(-1, 1, 6, 8)},
        -A[:, 0] * DT,
        SELECTIVE,
    ),
    "a Gated DeltaNet of other names": (
        {
            "A_log": A[:, 0].log(),
            "dt_bias": inverse_softplus(DT),
            "in_proj.weight": uniform(-1, 1, 70, 8),
            "conv1d.weight": uniform(-1, 1, 32, 1, 4),
            "norm_of_out.weight": uniform(0.5, 0.9, 4),
        },
        -A[:, 0] * DT,
        SELECTIVE,
    ),
    "A_log beside a projection's bias": (
        {"log_A": A.log(), "dt_proj.bias": inverse_softplus(DT), "dt_proj.kernel": uniform(-1, 1, 2, 6)},
        -A * DT[:, None],
        SELECTIVE,
    ),
    "a regulariser beside A_log": (
        {"A_log": A[:, 0].log(), "dt_bias": inverse_softplus(DT), "lambda_params": uniform(0.2, 0.9, 24)},
        -A[:, 0] * DT,
        SELECTIVE,
    ),
    "raw real part, raw through softplus": (
        {"A_re_raw": inverse_softplus(A[:, 0]), "A_im": FREQUENCIES[:, 0], "log_dt": DT.log()},
        torch.complex(-A[:, 0], FREQUENCIES[:, 0]) * DT,
        False,
    ),
    "an LRU's polar form": (
        {"nu": RATES[0].log(), "theta": FREQUENCIES[0], "B_re": uniform(-1, 1, 4, 8)},
        torch.complex(-RATES[0], FREQUENCIES[0]),
        False,
    ),
    "an LRU's polar form in logarithms": (
        {"nu_log": RATES[0].log(), "theta_log": (FREQUENCIES[0] + 0.1).log(), "B_re": uniform(-1, 1, 4, 8)},
        torch.complex(-RATES[0], FREQUENCIES[0] + 0.1),
        False,
    ),
    "the logarithm of poles": ({"log_poles": FACTORS[..., None].log(), "residues": A}, FACTORS.log(), False),
    "poles in pairs": ({"poles": torch.view_as_real(POLES)[:, :, None].contiguous()}, POLES.log(), False),
    "poles, complex": ({"poles": POLES.to(torch.complex128)}, POLES.log(), False),
    "a decay that is the factor itself": ({"decay": FACTORS}, FACTORS.log(), False),
    "RWKV-5 after its conversion": (
        {"time_decay": uniform(0.02, 0.99, 6, 4, 1), "time_faaaa": uniform(-1, 1, 6, 4, 1)},
        uniform(0.02, 0.99, 6, 4, 1).log(),
        False,
    ),
    "the logarithm of slow rates": ({"log_decay": RATES.log()}, -RATES, False),
    "the logarithm of slow factors": ({"log_decay": FACTORS.log()}, FACTORS.log(), False),
    "negative, and slow only as it is": ({"decay": FACTORS.log()}, FACTORS.log(), False),
    "a logit": ({"decay_logit": FACTORS.logit()}, FACTORS.log(), False),
    "a forget gate's bias": (
        {"forget_gate.bias": FACTORS[:, 0].logit(), "forget_gate.weight": uniform(-1, 1, 6, 8)},
        FACTORS[:, 0].log(),
        SELECTIVE,
    ),
    "a rate per step": ({"rate": RATES}, -RATES, False),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("suffix", ["", pytest.param(".value", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("tensors", "expected", "selective"), RIGHT.values(), ids=RIGHT)
def test_the_offered_map_reads_the_true_eigenvalues(
    tensors: State, expected: torch.Tensor, selective: bool, suffix: str, tmp_path: Path
) -> None:
    text, said = offered(model({name + suffix: value for name, value in tensors.items()}), tmp_path / "m")
    assert text.startswith("[[layer]]\nreviewed = false"), said
    assert f"selective = {str(selective).lower()}" in text
    assert text.count("[[layer]]") == 1
    read = read_through(text, tmp_path / "m")
    assert len(read) == 3
    assert all(same_modes(found, expected) for found in read)


def test_two_kinds_of_layers_take_two_tables(tmp_path: Path) -> None:
    state = {f"net.{i}.slow.log_rate": RATES.log() for i in range(2)}
    state |= {f"net.{i}.fast.decay_logit": FACTORS.logit() for i in range(2, 4)}
    state["net.4.out.weight"] = uniform(-1, 1, 8, 8)
    text, _ = offered({name: value.clone() for name, value in state.items()}, tmp_path / "m")
    assert text.count("reviewed = false") == 2
    read = read_through(text, tmp_path / "m")
    assert [same_modes(found, -RATES) for found in read] == [True, True, False, False]
    assert [same_modes(found, FACTORS.log()) for found in read] == [False, False, True, True]


def test_a_table_fits_80_columns_but_for_comments(tmp_path: Path) -> None:
    text, _ = offered(model(RIGHT["complex, continuous"][0]), tmp_path / "m")
    assert max(len(line.partition("#")[0]) for line in text.splitlines()) < 80
    assert max(len(line) for line in text.splitlines()) <= 120


def test_values_that_are_not_finite_are_no_evidence(tmp_path: Path) -> None:
    rates = RATES.log()
    rates[0, :2] = torch.tensor([math.nan, math.inf])
    text, _ = offered(model({"log_rate": rates}), tmp_path / "m")
    (found, *_) = read_through(text, tmp_path / "m")
    assert int(found.real.isfinite().sum()) == 22


# --- where it is not clear, nothing is offered ----------------------------------------------------

UNCLEAR: dict[str, tuple[State, str]] = {
    "a step alone": ({"log_dt": DT.log()}, ""),
    "projections alone": (
        {
            "alpha.weight": uniform(-1, 1, 4, 8),
            "lambda_proj": uniform(-1, 1, 8, 8),
            "decay.kernel": uniform(-1, 1, 8, 8),
        },
        "",
    ),
    "a solver's regulariser, as in MesaNet": (
        {
            "lambda_params": uniform(0.1, 0.2, 24),
            "gate_proj.bias": uniform(-1, 1, 6),
            "gate_proj.weight": uniform(-1, 1, 6, 8),
        },
        "lambda_params, float64 (24,) in 3 layers, 0.1",
    ),
    "A without a step": ({"A_log": A.log()}, "no step Δ beside it"),
    "a step through who knows what": ({"A_log": A.log(), "inv_dt": DT.log()}, "step cell.inv_dt is a step Δ through"),
    "a step that fits no axis": ({"A_log": A.log(), "log_dt": uniform(-7, -2, 5)}, "has other axes"),
    "a step without a bias": ({"A_log": A.log(), "dt_proj.weight": uniform(-1, 1, 6, 2)}, "without a bias"),
    "KDA: a step per channel": (
        {"A_log": A[:, 0].log(), "dt_bias": uniform(-7, -2, 48), "f_b_proj.weight": uniform(-1, 1, 48, 4)},
        "has other axes",
    ),
    "an RWKV-6 of other names": (
        {"mix_decay.weight": uniform(-6, 1, 24), "mix_decay_w1.weight": uniform(-1, 1, 4, 24)},
        "",
    ),
    "two steps": ({"A_log": A.log(), "log_dt": DT.log(), "log_step": DT.log()}, "several steps"),
    "both signs": ({"decay": uniform(-1, 1, 6, 4)}, "of both signs"),
    "both signs, with a step": ({"Lambda": uniform(-1, 1, 6, 4), "log_dt": DT.log()}, "of both signs"),
    "raw": ({"decay_raw": uniform(-3, 1, 6)}, "a raw weight by its name"),
    "an EMA's alpha": ({"alpha": FACTORS}, "what a step keeps"),
    "a time constant": ({"tau": log_uniform(1, 1000, 6)}, "a time constant"),
    "an oscillator's stiffness": ({"A_diag": A[:, 0], "log_dt": DT.log()}, "the stiffness of an oscillator"),
    "a low-rank term": ({"A_real": A.log(), "log_dt": DT.log(), "P": uniform(-1, 1, 6, 4)}, "low-rank"),
    "a gate that steers it": (
        {"log_decay": RATES.log(), "f_proj.weight": uniform(-1, 1, 6, 8)},
        "steered by the input",
    ),
    "two decays": ({"log_rate": RATES.log(), "decay_logit": FACTORS.logit()}, "one of 2 that could be"),
    "rates and factors alike": ({"log_decay": uniform(-1, -0.3, 6, 4)}, ""),
    "negative, through exp or softplus": ({"decay": RATES.log()}, "through exp (rate) or softplus (rate)?"),
    "a nonlinear recurrence": (
        {"forget_gate.bias": uniform(1, 3, 6), "weight_hh": uniform(-1, 1, 6, 6)},
        "no linear recurrence",
    ),
    "a dense matrix": ({"A": uniform(-1, 1, 6, 6), "log_dt": DT.log()}, "of both signs"),
    "a linear system": (
        {"A": uniform(0, 1, 6, 6), "B": uniform(-1, 1, 6, 2), "C": uniform(-1, 1, 3, 6)},
        "full matrix",
    ),
    "a linear system of complex numbers, one input and output": (
        {"A": 0.4 * uniform(-1, 1, 6, 6) + 0.4j, "B": uniform(-1, 1, 6), "C": uniform(-1, 1, 1, 6)},
        "its decays are its eigenvalues",
    ),
    "no finite value": ({"log_rate": torch.full((6,), math.nan)}, "no finite value"),
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("tensors", "says"), UNCLEAR.values(), ids=UNCLEAR)
def test_what_is_not_clear_is_said_and_nothing_is_offered(tensors: State, says: str, tmp_path: Path) -> None:
    text, said = offered(model(tensors), tmp_path / "m")
    assert text == ""
    assert says in said
    assert not says or "no map can be offered" in said


def test_a_model_without_a_recurrence_is_offered_nothing_and_hears_of_no_candidates(tmp_path: Path) -> None:
    shapes = {"attn.c_attn.weight": (8, 24), "ln_1.weight": (8,), "ln_1.gamma": (8,), "mlp.c_fc.weight": (8, 32)}
    state = {f"h.{i}.{name}": uniform(0.1, 0.9, *shape) for i in range(3) for name, shape in shapes.items()}
    text, said = offered(state, tmp_path / "m")
    assert text == ""
    assert "no map" not in said


def test_many_candidates_are_counted(tmp_path: Path) -> None:
    names = ("decay", "decays", "time_decay_raw", "tau", "rate_raw", "A_log", "lambda_params")
    _, said = offered(model({name: uniform(-1, 1, 6) for name in names}), tmp_path / "m")
    assert said.count(" in 3 layers") == 4
    assert "3 more candidates" in said


# --- names and values drawn at random: right, or nothing -------------------------------------------


def affixed(words: list[str], prefixes: list[str]) -> st.SearchStrategy[str]:
    return st.builds(lambda p, w: p + w, st.sampled_from(prefixes), st.sampled_from(words))


WORLDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": lambda w: -w.exp(),
    "negative exp": lambda w: w,
    "softplus": lambda w: -(1 + w.exp()).log(),
    "sigmoid": lambda w: w.sigmoid().log(),
    "factor": lambda w: w.log(),
    "rate": lambda w: -w,
    "one less": lambda w: (1 - w).log(),
}
INVERSES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": lambda ell: (-ell).log(),
    "negative exp": lambda ell: ell,
    "softplus": lambda ell: inverse_softplus(-ell),
    "sigmoid": lambda ell: ell.exp().logit(),
    "factor": lambda ell: ell.exp(),
    "rate": lambda ell: -ell,
    "one less": lambda ell: 1 - ell.exp(),
}
SPELLED = {
    "exp": ["log_rate", "log_decay", "decay_log", "log_nu", "logDecay", "w_log_decay", "time_decay", "decay", "nu"],
    "negative exp": [
        "log_decay",
        "log_pole",
        "log_radius",
        "log_lambda_bar",
        "decay",
        "log_forget",
        "neg_decay",
        "lam",
    ],
    "softplus": ["decay", "raw_decay", "decay_raw", "decay_param", "nu", "retention"],
    "sigmoid": ["decay_logit", "logit_decay", "forget_logit", "retention_logit", "decay", "forget", "radius_raw"],
    "factor": ["decay", "radius", "poles", "retention", "forget", "lambda_bar", "time_decay", "eig", "alpha"],
    "rate": ["rate", "decay_rate", "decay", "damping", "nu", "leak"],
    "one less": ["alpha", "leak", "damping", "alpha_leak"],
}


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_map_for_names_and_values_drawn_at_random_is_right_or_there_is_none(
    data: st.DataObject, tmp_path: Path
) -> None:
    """Half-lives of 3 to 3,000 steps in the median, through seven functions, under names that people give them."""
    world = data.draw(st.sampled_from(sorted(WORLDS)))
    name = data.draw(affixed(SPELLED[world], ["", "ssm_", "rnn_", "h_"]))
    half_life = data.draw(st.floats(3.5, 3000))
    spread = data.draw(st.floats(1.01, 5))
    shape = data.draw(st.sampled_from([(8,), (8, 4), (1, 8, 1), (2, 5, 3)]))
    seed = data.draw(st.integers(0, 2**16))
    truth = -math.log(2) / half_life * log_uniform(1 / spread, spread, *shape, seed=seed)
    weight = INVERSES[world](truth)
    assert torch.allclose(WORLDS[world](weight), truth, rtol=1e-6)
    module = data.draw(st.sampled_from(["cell", "ema", "mix.rnn", "kernel"]))
    layers = data.draw(st.integers(1, 3))
    text, _ = offered(model({name: weight}, module, layers), tmp_path / "m")
    if text:
        read = read_through(text, tmp_path / "m")
        assert all(torch.allclose(found.real.flatten(), truth.flatten(), rtol=1e-6) for found in read), (name, text)


STEPPED = {
    "exp": ["log_A", "A_log", "log_A_real", "logA", "log_lambda", "log_decay"],
    "negative exp": ["A", "A_real", "Lambda_re", "lambda_", "A_diag", "decay"],
    "softplus": ["A_re_raw", "A_raw", "Lambda_re_raw", "raw_A", "decay_raw", "lambda_param"],
}
"""A plain `A` that is negative throughout is taken as it stands: no file could say that a softplus follows."""
STEPS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], list[str]]] = {
    "exp": (lambda dt: dt.log(), ["log_dt", "log_step", "log_delta", "logdt", "dt", "inv_dt"]),
    "softplus": (inverse_softplus, ["dt_bias", "dt_proj.bias", "delta_bias", "dt", "raw_dt", "inv_dt"]),
    "none": (lambda dt: dt, ["dt", "delta", "step", "step_size"]),
    "sigmoid": (lambda dt: dt.logit(), ["steps", "dt", "delta"]),
}


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_map_for_a_rate_and_a_step_drawn_at_random_is_right_or_there_is_none(
    data: st.DataObject, tmp_path: Path
) -> None:
    world, stepped = data.draw(st.sampled_from(sorted(STEPPED))), data.draw(st.sampled_from(sorted(STEPS)))
    inverse, names = STEPS[stepped]
    rate_name, step_name = data.draw(st.sampled_from(STEPPED[world])), data.draw(st.sampled_from(names))
    seed = data.draw(st.integers(0, 2**16))
    low = data.draw(st.floats(0.05, 2))
    rates = log_uniform(low, low * data.draw(st.floats(1.1, 30)), 8, 4, seed=seed)
    dt = log_uniform(1e-3, data.draw(st.floats(2e-3, 0.3)), 8, seed=seed + 1)
    truth = -rates * dt[:, None]
    text, _ = offered(model({rate_name: INVERSES[world](-rates), step_name: inverse(dt)}), tmp_path / "m")
    if text:
        read = read_through(text, tmp_path / "m")
        assert all(torch.allclose(found.real, truth, rtol=1e-6) for found in read), (rate_name, step_name, text)
