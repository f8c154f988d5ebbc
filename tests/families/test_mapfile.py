"""--map: families declared in a file, and the map that an unknown file is offered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from ssmdiag import Recurrence, diagnose, extract_recurrences, known_families, read_checkpoint, recognise
from ssmdiag.errors import LayerError, MapFileError, UnknownFamilyError
from ssmdiag.families.mapfile import read_map

Write = Callable[..., Path]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture
def read_declared(tmp_path: Path, write_model: Write) -> Callable[..., list[Recurrence]]:
    """Write tensors of one module, a map with these lines, and read what it declares."""

    def read(state: Mapping[str, torch.Tensor], lines: str, path: str = "net.layers.0.rnn") -> list[Recurrence]:
        model = write_model({f"{path}.{name}": value for name, value in state.items()})
        (tmp_path / "map.toml").write_text(f'[[layer]]\nname = "mine"\n{lines}', encoding="utf-8")
        return extract_recurrences(model, families=(*known_families(), *read_map(tmp_path / "map.toml")))

    return read


Read = Callable[..., list[Recurrence]]


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.shape == expected.shape and torch.allclose(actual + 0j, expected + 0j, rtol=1e-12, atol=1e-15)


# --- what is declared is what is read -------------------------------------------------------------


def test_a_continuous_layer_with_every_key(read_declared: Read) -> None:
    w, v, u, c = random(3, 4), random(3, 4), random(3), random(3, 4, 2)
    (found,) = read_declared(
        {"log_decay": w, "freq": v, "log_dt": u, "C": c},
        """
        weight = "*.rnn.log_decay"
        axes = "channel mode"
        map = "exp"
        domain = "continuous"
        frequency = "*.rnn.freq"
        step = "*.rnn.log_dt"
        conjugate_pairs = true
        output = "*.rnn.C"
        output_axes = "channel mode 2"
        """,
    )
    eigenvalues, step = torch.complex(-w.exp(), v), u.exp()[:, None]
    assert close(found.log_eigenvalues, eigenvalues * step)
    assert close(found.input_matrix, ((eigenvalues * step).exp() - 1) / eigenvalues)
    assert close(found.output_matrix, torch.view_as_complex(c)[None])
    assert found.step.expand(3, 4).equal(step.expand(3, 4))
    assert (found.family, found.layer, found.kernel_factor) == ("mine", "net.layers.0.rnn", 2.0)
    assert found.time_invariant
    assert [(weight.role, weight.map) for weight in found.weights] == [
        ("rate", "exp"), ("frequency", "none"), ("step", "exp"),
    ]  # fmt: skip


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ('domain = "rate"', lambda f: -f),
        ('domain = "discrete"', lambda f: f.log()),
        ('domain = "continuous"\nstep = 0.5', lambda f: -f * 0.5),
        ('domain = "continuous"\nstep = 0.5\ndiscretisation = "bilinear"', lambda f: ((1 - f / 4) / (1 + f / 4)).log()),
    ],
)
@pytest.mark.parametrize("map", ["sigmoid", "exp", "softplus", "best"])
def test_every_domain(
    domain: str, expected: Callable[[torch.Tensor], torch.Tensor], map: str, read_declared: Read
) -> None:
    w = random(5, 2) - 1
    f = {
        "sigmoid": 1 / (1 + (-w).exp()),
        "exp": w.exp(),
        "softplus": (1 + w.exp()).log(),
        "best": 1 / (w**2 + 0.5),
    }[map]
    (found,) = read_declared({"w": w}, f'weight = "*.w"\naxes = "channel mode"\nmap = "{map}"\n{domain}')
    assert close(found.log_eigenvalues.real, expected(f))
    assert found.input_matrix is None


@pytest.mark.parametrize(
    ("axes", "shape", "layout"),
    [
        ("channel mode", (3, 4), lambda w: w),
        ("mode channel", (3, 4), lambda w: w.T),
        ("mode", (5,), lambda w: w[None]),
        ("channel", (5,), lambda w: w[:, None]),
        ("1 channel 1", (1, 5, 1), lambda w: w.reshape(5, 1)),
        ("1 1 mode", (1, 1, 5), lambda w: w.reshape(1, 5)),
        ("head channel mode", (2, 3, 4), lambda w: w.reshape(6, 4)),
        ("head mode channel", (2, 3, 4), lambda w: w.transpose(1, 2).reshape(8, 3)),
    ],
)
def test_axes_become_channel_and_mode(
    axes: str, shape: tuple[int, ...], layout: Callable[[torch.Tensor], torch.Tensor], read_declared: Read
) -> None:
    w = random(*shape)
    (found,) = read_declared({"w": w}, f'weight = "*.w"\naxes = "{axes}"\nmap = "exp"\ndomain = "rate"')
    assert close(found.log_eigenvalues.real, -layout(w).exp())


@pytest.mark.parametrize(
    ("axes", "shape"), [("channel", (3,)), ("mode", (4,)), ("channel 1", (3, 1)), ("mode channel", (4, 3))]
)
def test_a_step_may_lack_axes_or_turn_them(axes: str, shape: tuple[int, ...], read_declared: Read) -> None:
    w, u = random(3, 4), random(*shape)
    (found,) = read_declared(
        {"w": w, "dt": u},
        'weight = "*.w"\naxes = "channel mode"\nmap = "exp"\ndomain = "continuous"\n'
        f'step = "*.dt"\nstep_axes = "{axes}"\nstep_map = "softplus"',
    )
    step = (1 + u.exp()).log()
    step = step.mT if axes == "mode channel" else step.reshape((1, 4) if axes == "mode" else (3, 1))
    assert close(found.log_eigenvalues.real, -w.exp() * step)


@pytest.mark.parametrize("stored", ["complex", "pairs"])
@pytest.mark.parametrize(
    ("map", "domain", "expected"),
    [
        ("direct", 'domain = "continuous"\nstep = 0.1', lambda z: 0.1 * z),
        ("none", 'domain = "continuous"\nstep = 0.1', lambda z: -0.1 * z),
        ("none", 'domain = "discrete"', lambda z: z.log()),
        ("direct", 'domain = "rate"', lambda z: z),
    ],
)
def test_complex_eigenvalues_in_one_tensor(
    map: str, domain: str, expected: Callable[[torch.Tensor], torch.Tensor], stored: str, read_declared: Read
) -> None:
    z = torch.complex(random(4), random(4)).to(torch.complex64)
    z /= 1.1 * z.abs().max()  # as a discrete eigenvalue it decays
    state = {"Lambda": z if stored == "complex" else torch.view_as_real(z)}
    axes = "mode" if stored == "complex" else "mode 2"
    (found,) = read_declared(state, f'weight = "*.Lambda"\naxes = "{axes}"\nmap = "{map}"\n{domain}')
    assert close(found.log_eigenvalues, expected(z.to(torch.complex128))[None])


def test_complex_eigenvalues_through_a_real_map_are_refused(read_declared: Read) -> None:
    with pytest.raises(LayerError, match="is complex; map = 'exp' takes real weights"):
        read_declared(
            {"w": torch.complex(random(4), random(4)).to(torch.complex64)},
            'weight = "*.w"\naxes = "mode"\nmap = "exp"\ndomain = "rate"',
        )


def test_kernels_with_b_and_c(read_declared: Read) -> None:
    w, b, c = random(3, 4), random(3, 4), random(3, 4)
    (found,) = read_declared(
        {"w": w, "B": b, "C": c},
        'weight = "*.w"\naxes = "channel mode"\nmap = "sigmoid"\ndomain = "discrete"\n'
        'input = "*.B"\ninput_axes = "channel mode"\noutput = "*.C"\noutput_axes = "channel mode"',
    )
    assert close(found.input_matrix, b)
    assert close(found.output_matrix, c[None])
    assert found.kernel_factor == 1.0


def test_selective_layers_are_nominal(read_declared: Read) -> None:
    (found,) = read_declared(
        {"gate.bias": random(3)},
        'weight = "*.gate.bias"\naxes = "channel"\nmap = "sigmoid"\ndomain = "discrete"\nselective = true',
    )
    assert not found.time_invariant
    assert found.operating_point is not None


# --- which layers -------------------------------------------------------------------------------

PLAIN = 'axes = "channel"\nmap = "exp"\ndomain = "rate"\n'


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("*.decay", ["a.0.rnn", "a.1.rnn", "b.0.rnn", "b.0.other"]),
        ("*.rnn.decay", ["a.0.rnn", "a.1.rnn", "b.0.rnn"]),
        ("a.*.rnn.decay", ["a.0.rnn", "a.1.rnn"]),
        ("a.*.*.decay", ["a.0.rnn", "a.1.rnn"]),
        ("*.0.rnn.decay", ["a.0.rnn", "b.0.rnn"]),
        ("b.0.rnn.decay", ["b.0.rnn"]),
    ],
)
def test_a_star_is_the_path_of_the_layer(pattern: str, paths: list[str], tmp_path: Path, write_model: Write) -> None:
    model = write_model({f"{path}.decay": random(2) for path in ("a.0.rnn", "a.1.rnn", "b.0.rnn", "b.0.other")})
    (tmp_path / "map.toml").write_text(f'[[layer]]\nname = "mine"\nweight = "{pattern}"\n{PLAIN}')
    found = recognise(read_checkpoint(model), families=read_map(tmp_path / "map.toml"))
    assert sorted(layer.path for layer in found.layers) == sorted(paths)


def test_several_layers_of_one_map(tmp_path: Path, write_model: Write) -> None:
    model = write_model({"l.0.decay": random(2), "l.1.alpha": random(3)})
    (tmp_path / "map.toml").write_text(
        f'[[layer]]\nname = "one"\nweight = "*.decay"\n{PLAIN}\n[[layer]]\nname = "two"\nweight = "*.alpha"\n{PLAIN}'
    )
    result = diagnose(model, families=read_map(tmp_path / "map.toml"))
    assert [(layer.name, layer.family) for layer in result.layers] == [("l.0", "one"), ("l.1", "two")]


def test_a_declaration_goes_before_a_known_family(tmp_path: Path, write_model: Write) -> None:
    state = {"l.0.A_log": random(4, 2), "l.0.dt_proj.bias": random(4), "l.0.x_proj.weight": random(6, 4)}
    (tmp_path / "map.toml").write_text(
        '[[layer]]\nname = "mine"\nweight = "*.A_log"\naxes = "channel mode"\nmap = "softplus"\ndomain = "rate"'
    )
    result = diagnose(write_model(state), families=(*known_families(), *read_map(tmp_path / "map.toml")))
    assert [layer.family for layer in result.layers] == ["mine"]
    assert result.problems == ()


def test_a_declaration_that_fits_nothing_is_a_problem(tmp_path: Path, write_model: Write) -> None:
    state = {"l.0.A_log": random(4, 2), "l.0.dt_proj.bias": random(4)}
    (tmp_path / "map.toml").write_text(f'[[layer]]\nname = "mine"\nweight = "*.rnn.A_log"\n{PLAIN}')
    families = read_map(tmp_path / "map.toml")
    (problem,) = diagnose(write_model(state), families=(*known_families(), *families)).problems
    assert "map.toml: mine fits no layer" in problem
    assert "A_log (channel)" in problem
    with pytest.raises(UnknownFamilyError, match="mine fits no layer"):
        diagnose(tmp_path / "model", families=families)


# --- what is not valid ----------------------------------------------------------------------------

GOOD = {"name": '"m"', "weight": '"*.rnn.w"', "axes": '"channel mode"', "map": '"exp"', "domain": '"rate"'}


def write_map(path: Path, changes: Mapping[str, str | None]) -> Path:
    keys = {**GOOD, **changes}
    path.write_text("[[layer]]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items() if value is not None))
    return path


def test_the_valid_map_of_these_tests_is_valid(tmp_path: Path) -> None:
    assert [family.name for family in read_map(write_map(tmp_path / "map.toml", {}))] == ["m"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"wieght": '"*.x"'}, ["unknown key wieght", "did you mean weight?"]),
        ({"colour": "1"}, ["unknown key colour", "one of name, weight, axes"]),
        ({"map": '"log"'}, ["map = 'log'", "exp", "softplus"]),
        ({"map": "3"}, ["map = 3"]),
        ({"map": "[]"}, ["map = []"]),
        ({"domain": '"laplace"'}, ["domain = 'laplace'", "continuous, rate, discrete"]),
        ({"domain": '"continuous"'}, ["missing step"]),
        ({"discretisation": '"zoh"'}, ["discretisation has no meaning here"]),
        ({"step": "0.1"}, ["step has no meaning here"]),
        ({"domain": '"continuous"', "step": "0"}, ["step = 0", "positive"]),
        ({"domain": '"continuous"', "step": "-1.0"}, ["step = -1.0"]),
        ({"domain": '"continuous"', "step": "inf"}, ["step = inf"]),
        ({"domain": '"continuous"', "step": "nan"}, ["step = nan"]),
        ({"domain": '"continuous"', "step": "true"}, ["step = True"]),
        ({"domain": '"continuous"', "step": "0.1", "step_axes": '"channel"'}, ["step_axes has no meaning"]),
        ({"domain": '"continuous"', "step": "0.1", "discretisation": '"euler"'}, ["'euler'", "zoh, bilinear"]),
        ({"weight": None}, ["missing weight"]),
        ({"name": None, "axes": None}, ["missing name, axes"]),
        ({"weight": '""'}, ["weight = ''", "a tensor name"]),
        ({"weight": '"*.rnn.*"'}, ["weight = '*.rnn.*'"]),
        ({"weight": '"*.rn*.w"'}, ["weight = '*.rn*.w'"]),
        ({"weight": '"*"'}, ["weight = '*'"]),
        ({"weight": "7"}, ["weight = 7"]),
        ({"frequency": '"*.rnn.w"'}, ["not different tensors of one layer"]),
        ({"frequency": '"net.*.rnn.v"'}, ["not different tensors of one layer"]),
        ({"frequency_map": '"none"'}, ["frequency_map has no meaning"]),
        ({"axes": '"channel, mode"'}, ["axes = 'channel, mode'"]),
        ({"axes": '"channel 3"'}, ["axes = 'channel 3'"]),
        ({"axes": '"mode mode"'}, ['axes "mode mode" of w']),
        ({"output": '"*.rnn.C"'}, ["missing output_axes"]),
        ({"output": '"*.rnn.C"', "output_axes": '"out mode"'}, ['axes "out mode" of C']),
        ({"conjugate_pairs": '"yes"'}, ["conjugate_pairs = 'yes'", "true or false"]),
        ({"selective": "1"}, ["selective = 1", "true or false"]),
        ({"reviewed": '"no"'}, ["reviewed = 'no'", "true or false"]),
        ({"name": '""'}, ["name = ''"]),
        ({"name": '"mamba"'}, ['name = "mamba" is taken']),
    ],
)
def test_an_invalid_map_names_the_key_and_the_choices(
    changes: Mapping[str, str | None], says: list[str], tmp_path: Path
) -> None:
    path = write_map(tmp_path / "map.toml", changes)
    with pytest.raises(MapFileError) as caught:
        read_map(path)
    assert str(path) in caught.value.seen
    for text in says:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has nothing at its top level"),
        (b"layer = 3", "expected: one or more tables"),
        (b"[layer]\nname = 'x'", "expected: one or more tables"),
        (b"layer = []", "expected: one or more tables"),
        (b"layer = [1]", "expected: one or more tables"),
        (b"[[layers]]\nname = 'x'", "has layers at its top level"),
        (b"[[layer]\n", "is not TOML"),
        (b"name = \xff", "is not UTF-8 text"),
    ],
)
def test_what_is_no_map_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_bytes(content)
    with pytest.raises(MapFileError) as caught:
        read_map(tmp_path / "map.toml")
    assert says in str(caught.value)


def test_a_map_that_is_not_there_is_a_known_problem(tmp_path: Path) -> None:
    for path in (tmp_path / "map.toml", tmp_path):
        with pytest.raises(MapFileError, match="cannot be read"):
            read_map(path)


def test_two_layers_cannot_share_a_name(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.toml", {})
    path.write_text(path.read_text() * 2)
    with pytest.raises(MapFileError, match='name = "m" is taken'):
        read_map(path)


# --- values that prove a declaration wrong, and maps nobody has reviewed ---------------------------


@pytest.mark.parametrize(
    ("values", "map", "domain", "says"),
    [
        ([0.5, 2.0, 16.0], "exp", "discrete", "|λ̄| = f(w) below 1"),
        ([-3.0, -1.0], "none", "rate", "f(w) above 0"),
        ([0.5, 1.0], "direct", "continuous", "Re λ = −f(w) below 0"),
        ([1.5, 1.1], "none", "discrete", "runs from 1.1 to 1.5"),
    ],
)
def test_a_domain_in_which_no_mode_decays_is_refused(
    values: list[float], map: str, domain: str, says: str, read_declared: Read
) -> None:
    step = "step = 0.1\n" if domain == "continuous" else ""
    step += "reviewed = false" if domain != "discrete" else ""
    lines = f'weight = "*.w"\naxes = "channel"\nmap = "{map}"\ndomain = "{domain}"\n{step}'
    with pytest.raises(LayerError, match=f'domain = "{domain}", no mode decays') as caught:
        read_declared({"w": torch.tensor(values)}, lines)
    assert says in str(caught.value)


def test_a_rate_that_grows_is_read_where_a_human_declared_it(read_declared: Read) -> None:
    (found,) = read_declared(
        {"w": torch.tensor([1.0, 2.0])}, 'weight = "*.w"\naxes = "channel"\nmap = "direct"\ndomain = "rate"'
    )
    assert close(found.log_eigenvalues, torch.tensor([[1.0], [2.0]], dtype=torch.float64))


@pytest.mark.parametrize("values", [[-0.5, 0.2, 1.7], [1.0, 1.0], [0.3, math.nan], [math.nan, math.inf]])
def test_a_broken_layer_is_read_as_it_is(values: list[float], read_declared: Read) -> None:
    (found,) = read_declared(
        {"w": torch.tensor(values)}, 'weight = "*.w"\naxes = "channel"\nmap = "none"\ndomain = "discrete"'
    )
    assert found.channels == len(values)


@pytest.mark.parametrize(("line", "guess"), [("reviewed = false", True), ("reviewed = true", False), ("", False)])
def test_a_map_nobody_has_reviewed_makes_a_guess(line: str, guess: bool, tmp_path: Path, write_model: Write) -> None:
    """Maps without the key were written by a human: only those that ssmdiag prints have it."""
    (tmp_path / "map.toml").write_text(f'[[layer]]\nname = "mine"\nweight = "*.decay"\n{PLAIN}{line}')
    model = write_model({"l.0.decay": random(2)})
    result = diagnose(model, families=read_map(tmp_path / "map.toml"))
    assert (result.guess is not None) == guess
    assert not guess or f"read through {tmp_path / 'map.toml'}" in str(result.guess)


def test_families_that_read_no_layer_make_no_guess(tmp_path: Path, write_model: Write) -> None:
    (tmp_path / "map.toml").write_text(f'[[layer]]\nname = "mine"\nweight = "*.decay"\n{PLAIN}reviewed = false')
    state = {"l.0.A_log": random(4, 2), "l.0.dt_proj.bias": random(4), "l.0.x_proj.weight": random(6, 4)}
    families = (*known_families(), *read_map(tmp_path / "map.toml"))
    assert diagnose(write_model(state), families=families).guess is None
