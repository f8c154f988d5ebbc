"""Damaged, foreign and half-missing recurrences: each is reported by name, and the rest is diagnosed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ssmdiag import Family, Recurrence, Spelling, diagnose, extract_recurrences, known_families, read_checkpoint
from ssmdiag.assessment.spectrum import summarise
from ssmdiag.errors import LayerError, UnknownFamilyError
from ssmdiag.families.layer import Layer

Write = Callable[..., Path]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def mamba(layers: int = 3) -> dict[str, torch.Tensor]:
    shapes = {
        "A_log": (8, 4), "dt_proj.bias": (8,), "dt_proj.weight": (8, 2), "x_proj.weight": (10, 8), "D": (8,),
        "conv1d.weight": (8, 1, 4), "in_proj.weight": (16, 4), "out_proj.weight": (4, 8),
    }  # fmt: skip
    return {
        f"backbone.layers.{i}.mixer.{name}": random(*shape) for i in range(layers) for name, shape in shapes.items()
    }


def s4d(layers: int = 3) -> dict[str, torch.Tensor]:
    shapes = {"log_A_real": (8, 4), "A_imag": (8, 4), "log_dt": (8,), "C": (8, 4, 2)}
    return {f"s4_layers.{i}.kernel.{name}": random(*shape) for i in range(layers) for name, shape in shapes.items()}


MIDDLE = "backbone.layers.1.mixer"

# --- values that are not finite -------------------------------------------------------------------


@pytest.mark.one_in(2)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_modes_that_are_not_finite_are_counted_and_the_rest_is_diagnosed(bad: float, write_model: Write) -> None:
    state = mamba()
    clean = diagnose(write_model(state, name="clean"))
    state[f"{MIDDLE}.dt_proj.bias"][2] = bad
    result = diagnose(write_model(state, name="bad"))
    first, middle, last = result.layers
    assert result.problems == ()
    # Δ = ∞ would forget at once, but an infinite weight is a broken mode, not a fast one.
    assert middle.nonfinite == 4
    assert any("dt_proj.bias: 1 of 8 values" in note for note in middle.notes)
    assert middle.channels * middle.modes == sum(middle.histogram) + middle.nonfinite
    assert (first, last) == (clean.layers[0], clean.layers[2])
    json.dumps(middle.eigenvalues)
    assert not any(math.isnan(value) for value in vars(middle.half_life).values())


@pytest.mark.slow
def test_a_layer_of_nothing_but_nan_has_no_numbers(write_model: Write) -> None:
    state = mamba()
    state[f"{MIDDLE}.A_log"].fill_(math.nan)
    result = diagnose(write_model(state))
    middle = result.layers[1]
    assert middle.nonfinite == 32
    assert middle.rate is middle.half_life is middle.time_constant is middle.spectral_radius is middle.margin is None
    assert middle.eigenvalues == ()
    assert sum(middle.histogram) == 0
    assert [layer.nonfinite for layer in result.layers] == [0, 32, 0]


@pytest.mark.one_in(7)
@pytest.mark.parametrize("tensor", ["log_A_real", "A_imag", "log_dt"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_every_spectral_tensor_may_hold_what_is_not_finite(tensor: str, bad: float, write_model: Write) -> None:
    state = s4d(1)
    state[f"s4_layers.0.kernel.{tensor}"].view(-1)[0] = bad
    (layer,) = diagnose(write_model(state)).layers
    bad_modes = layer.nonfinite
    assert 0 <= bad_modes <= 4
    assert sum(layer.histogram) + bad_modes == 32
    assert bad_modes > 0 or not math.isnan(bad)
    for quantiles in (layer.rate, layer.half_life, layer.time_constant):
        assert not any(math.isnan(value) for value in vars(quantiles).values())


def test_a_summary_counts_each_kind_of_mode() -> None:
    rate = torch.tensor([[0.5, 0.0, -0.1, math.nan, math.inf, -math.inf]], dtype=torch.float64)
    summary = summarise(Recurrence("m", "f", "s", torch.complex(-rate, torch.zeros_like(rate)), True), "F")
    assert (summary.nonfinite, summary.unstable, summary.marginal) == (2, 1, 1)
    assert summary.rate is not None
    assert (summary.rate.min, summary.rate.max) == (-0.1, math.inf)
    assert summary.spectral_radius == pytest.approx(math.exp(0.1), rel=1e-15)
    assert summary.margin == pytest.approx(-math.expm1(0.1), rel=1e-15)
    assert sum(summary.histogram) == 4


# --- tensors that do not fit together -------------------------------------------------------------


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("dt_proj.bias", (7,), "dt_proj.bias has shape (7,), but"),
        ("A_log", (9, 4), "says channel = 9"),
        ("dt_proj.bias", (0,), "dt_proj.bias has shape (0,), but"),
    ],
)
def test_wrong_shapes_are_a_problem_of_their_layer(
    name: str, shape: tuple[int, ...], says: str, write_model: Write
) -> None:
    state = mamba()
    state[f"{MIDDLE}.{name}"] = random(*shape)
    result = diagnose(write_model(state), memory=False)
    assert [layer.name for layer in result.layers] == ["backbone.layers.0.mixer", "backbone.layers.2.mixer"]
    (problem,) = result.problems
    assert MIDDLE in problem
    assert says in problem
    assert result.exit_code() == 2


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("A_log", (8,)),
        ("A_log", (2, 2, 2)),
        ("dt_proj.bias", (8, 4)),
        ("dt_proj.bias", (2, 2, 2)),
        ("dt_proj.bias", ()),
    ],
)
def test_another_number_of_axes_is_a_problem_that_names_the_tensor(
    name: str, shape: tuple[int, ...], write_model: Write
) -> None:
    state = mamba()
    state[f"{MIDDLE}.{name}"] = random(*shape)
    result = diagnose(write_model(state), memory=False)
    assert len(result.layers) == 2
    assert any(f"{MIDDLE}.{name}" in problem for problem in result.problems), result.problems


@pytest.mark.parametrize("name", ["A_log", "dt_proj.bias"])
def test_a_missing_sibling_is_a_problem_that_names_it(name: str, write_model: Write) -> None:
    state = mamba()
    del state[f"{MIDDLE}.{name}"]
    result = diagnose(write_model(state), memory=False)
    assert len(result.layers) == 2
    (problem,) = result.problems
    assert f"{MIDDLE}.{name} missing" in problem


def test_missing_siblings_of_many_layers_are_each_a_problem(write_model: Write) -> None:
    state = {name: value for name, value in s4d(6).items() if not name.endswith("C") or "0.kernel" in name}
    result = diagnose(write_model(state), memory=False)
    assert len(result.layers) == 1
    assert len(result.problems) == 5
    assert all("kernel.C missing" in problem for problem in result.problems)


# --- quantised and packed -------------------------------------------------------------------------


@pytest.mark.one_in(3)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.uint32, torch.int32, torch.bool], ids=str)
def test_packed_weights_are_a_problem_that_names_them(dtype: torch.dtype, write_model: Write) -> None:
    state = mamba()
    state[f"{MIDDLE}.A_log"] = torch.ones(8, 4).to(dtype)
    result = diagnose(write_model(state), memory=False)
    assert len(result.layers) == 2
    (problem,) = result.problems
    assert f"{MIDDLE}.A_log is stored as {str(dtype).removeprefix('torch.')}" in problem
    assert "unquantised" in problem


def test_a_model_whose_projections_alone_are_packed_is_diagnosed(write_model: Write) -> None:
    """GPTQ, MLX and bitsandbytes leave A_log and the bias of Δ as they are."""
    state = mamba()
    plain = diagnose(write_model(state, name="plain"), memory=False)
    for name in list(state):
        if name.endswith("proj.weight"):
            state[name] = torch.ones(state[name].numel() // 8, 1, dtype=torch.uint32)
    packed = diagnose(write_model(state, name="packed"), memory=False)
    assert packed.problems == ()
    assert [layer.rate for layer in packed.layers] == [layer.rate for layer in plain.layers]


def test_a_packed_weight_of_fewer_columns_is_named_for_what_it_is(write_model: Write) -> None:
    """Four-bit formats fold eight weights into one uint32: the shape is wrong because of the dtype."""
    state = mamba()
    state[f"{MIDDLE}.dt_proj.bias"] = torch.ones(1, dtype=torch.uint32)
    (problem,) = diagnose(write_model(state), memory=False).problems
    assert f"{MIDDLE}.dt_proj.bias is stored as uint32" in problem


@pytest.mark.one_in(2)
@pytest.mark.parametrize("scale", ["_scale", "_scale_inv"])
def test_fp8_with_scales_is_a_problem_and_without_is_read(scale: str, write_model: Write) -> None:
    state = mamba()
    state[f"{MIDDLE}.A_log"] = state[f"{MIDDLE}.A_log"].to(torch.float8_e4m3fn)
    plain = diagnose(write_model(state, name="plain"), memory=False)
    assert plain.problems == ()
    assert plain.layers[1].dtype == "float8_e4m3fn"
    state[f"{MIDDLE}.A_log{scale}"] = torch.ones(1)
    scaled = diagnose(write_model(state, name="scaled"), memory=False)
    assert len(scaled.layers) == 2
    assert f"{MIDDLE}.A_log is float8_e4m3fn with scales beside it" in scaled.problems[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_every_floating_point_dtype_is_read_in_float64(dtype: torch.dtype, write_model: Write) -> None:
    state = {name: value.to(dtype) for name, value in mamba(1).items()}
    (found,) = extract_recurrences(write_model(state))
    a_log, bias = (state[f"backbone.layers.0.mixer.{name}"].double() for name in ("A_log", "dt_proj.bias"))
    expected = a_log.exp() * (1 + bias.exp()).log()[:, None]
    torch.testing.assert_close(found.rate, expected, rtol=1e-12, atol=0)
    assert found.dtype == str(dtype).removeprefix("torch.")


# --- values that cannot be read -------------------------------------------------------------------


def test_values_that_cannot_be_read_are_a_problem_of_their_layer(tmp_path: Path) -> None:
    import zipfile

    torch.save(mamba(), tmp_path / "m.pt")
    content = bytearray((tmp_path / "m.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        member = [info for info in archive.infolist() if "/data/" in info.filename][8]  # A_log of the second layer
    content[member.header_offset : member.header_offset + 4] = b"\0\0\0\0"
    (tmp_path / "m.pt").write_bytes(bytes(content))
    result = diagnose(tmp_path / "m.pt", memory=False)
    assert len(result.layers) == 2
    (problem,) = result.problems
    assert f"m.pt: tensor {MIDDLE}.A_log cannot be read" in problem


# --- two families, no family ----------------------------------------------------------------------


def read_exponential(layer: Layer) -> Iterator[Recurrence]:
    yield layer.recurrence(-layer.weight("decay", "exp")[:, None])


def declared(name: str, tensors: dict[str, str], **fields: object) -> Family:
    spelling = Spelling(f"{name}'s files", tensors, **fields)  # type: ignore[arg-type]
    return Family(name, name.title(), "–", "exact", (spelling,), read_exponential)


def test_a_layer_that_two_families_claim_is_left_to_the_user(write_model: Write) -> None:
    state = {f"l.{i}.{name}": random(4) for i in range(3) for name in ("decay", "gate")} | {"other.decay": random(3)}
    families = [
        declared("first", {"decay": "channel", "gate": "channel"}),
        declared("second", {"gate": "channel", "decay": "channel"}),
        declared("third", {"decay": "channel"}, absent=("gate",)),
    ]
    model = write_model(state)
    result = diagnose(model, families=families, memory=False)
    assert [layer.name for layer in result.layers] == ["other"]
    (problem,) = result.problems
    assert problem.startswith("l.0 and 2 more modules: claimed by first and second")
    assert "--assume family=first or --assume family=second" in problem
    for name in ("first", "second"):
        chosen = diagnose(model, families=families, assume={"family": name}, memory=False)
        assert chosen.problems == ()
        assert [layer.family for layer in chosen.layers] == ["third", name, name, name]


def test_only_contested_layers_is_an_error_that_says_so(write_model: Write) -> None:
    families = [declared("first", {"decay": "channel"}), declared("second", {"decay": "channel"})]
    with pytest.raises(UnknownFamilyError, match="claimed by first and second"):
        diagnose(write_model({"l.0.decay": random(4)}), families=families, memory=False)


def test_the_family_that_explains_more_tensors_has_the_layer(write_model: Write) -> None:
    families = [declared("few", {"decay": "channel"}), declared("many", {"decay": "channel", "gate": "channel"})]
    result = diagnose(write_model({"l.0.decay": random(4), "l.0.gate": random(4)}), families=families, memory=False)
    assert [layer.family for layer in result.layers] == ["many"]
    assert result.problems == ()


NEAR_MISSES = {
    "mamba without the bias of Δ": (
        {name: value for name, value in mamba().items() if not name.endswith("dt_proj.bias")},
        "mamba",
        "backbone.layers.0.mixer.dt_proj.bias missing",
    ),
    "lru with nu renamed": (
        {
            f"blocks.{i}.seq.{name}": random(*shape)
            for i in range(2)
            for name, shape in {
                "nu_raw": (8,), "theta_log": (8,), "gamma_log": (8,), "B_re": (8, 4), "B_im": (8, 4), "C_re": (4, 8),
                "C_im": (4, 8), "D": (4,),
            }.items()
        },
        "lru",
        "blocks.0.seq.nu_log missing",
    ),
    "s4d without C": (
        {name: value for name, value in s4d().items() if not name.endswith(".C")},
        "s4d",
        "s4_layers.0.kernel.C missing",
    ),
    "s4d with another C": (
        {name: random(1, 8, 4, 2) if name.endswith(".C") else value for name, value in s4d().items()},
        "s4d",
        "s4_layers.0.kernel.C is float32 (1, 8, 4, 2), expected (channel mode 2)",
    ),
    "mamba-2 without D": (
        {
            f"l.{i}.mixer.{name}": random(*shape)
            for i in range(2)
            for name, shape in {
                "A_log": (4,), "dt_bias": (4,), "in_proj.weight": (40, 8), "norm.weight": (8,),
            }.items()
        },
        "mamba2",
        "l.0.mixer.D missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(NEAR_MISSES))
def test_an_unknown_file_names_the_closest_family_and_what_it_lacks(case: str, write_model: Write) -> None:
    state, family, reason = NEAR_MISSES[case]
    with pytest.raises(UnknownFamilyError) as caught:
        diagnose(write_model(state), memory=False)
    closest = [line for line in str(caught.value).splitlines() if line.startswith("  closest: ")]
    assert closest[0].startswith(f"  closest: {family} ("), closest
    assert reason in closest[0]
    # A map that is right, or why there is none.
    offered = "--map map.toml" in "\n".join(caught.value.sample)
    assert offered != ("no map can be offered: what could be a decay is not clear." in str(caught.value))


@pytest.mark.parametrize("query", ["attn.c_attn.weight", "self_attn.q_proj.weight", "attention.self.query.weight"])
def test_a_transformer_is_told_that_it_looks_like_one(query: str, write_model: Write) -> None:
    names = [f"layers.{layer}.{name}" for layer in range(3) for name in (query, "mlp.weight", "norm.weight")]
    with pytest.raises(UnknownFamilyError, match="it looks like a transformer: by name 3 modules are attention"):
        diagnose(write_model({name: random(8, 8) for name in names}), memory=False)


def test_what_could_be_recurrent_beside_attention_is_no_transformer(write_model: Write) -> None:
    state = NEAR_MISSES["lru with nu renamed"][0] | {"layers.1.self_attn.q_proj.weight": random(8, 8)}
    with pytest.raises(UnknownFamilyError) as caught:
        diagnose(write_model(state), memory=False)
    assert "transformer" not in str(caught.value)


def test_an_unknown_file_says_the_same_every_time(write_model: Write) -> None:
    model = write_model(NEAR_MISSES["lru with nu renamed"][0])
    texts = set()
    for _ in range(3):
        with pytest.raises(UnknownFamilyError) as caught:
            diagnose(model, memory=False)
        texts.add(str(caught.value))
    assert len(texts) == 1


NOTHING: dict[str, dict[str, tuple[int, ...]]] = {
    "attention": {"attn.c_attn.weight": (8, 24), "attn.c_proj.weight": (8, 8), "ln_1.weight": (8,), "fc.bias": (32,)},
    "flax": {"Conv_0.kernel": (3, 8, 8), "Conv_0.bias": (8,), "Dense_0.kernel": (8, 8), "Dense_0.bias": (8,)},
    "a Kalman filter": {"F": (8, 8), "H": (2, 8), "Q": (8, 8), "P": (8, 8)},
}


@pytest.mark.parametrize("shapes", NOTHING.values(), ids=NOTHING)
def test_a_file_with_nothing_recurrent_has_no_closest_family(
    shapes: dict[str, tuple[int, ...]], write_model: Write
) -> None:
    state = {f"h.{i}.{name}": random(*shape) for i in range(3) for name, shape in shapes.items()}
    with pytest.raises(UnknownFamilyError) as caught:
        diagnose(write_model(state), memory=False)
    assert "closest" not in str(caught.value)
    assert "12 tensors" in caught.value.seen


def test_the_first_unreadable_layer_stops_an_extraction(write_model: Write) -> None:
    state = mamba()
    state[f"{MIDDLE}.A_log"] = torch.ones(8, 4, dtype=torch.int8)
    with pytest.raises(LayerError, match="int8"):
        extract_recurrences(write_model(state))


def test_names_that_are_not_ascii_and_wrappers_are_read_alike(write_model: Write) -> None:
    state = mamba(1)
    plain = diagnose(write_model(state, name="plain"), memory=False)
    wrapped = {f"module._orig_mod.größe.{name}": value for name, value in state.items()}
    result = diagnose(write_model(wrapped, name="wrapped"), memory=False)
    assert result.layers[0].name == f"größe.{plain.layers[0].name}"
    assert result.layers[0].rate == plain.layers[0].rate


def test_known_families_do_not_claim_an_empty_file(write_model: Write) -> None:
    checkpoint = read_checkpoint(write_model({}))
    assert len(checkpoint) == 0
    with pytest.raises(UnknownFamilyError, match="0 tensors"):
        diagnose(checkpoint, families=known_families(), memory=False)
