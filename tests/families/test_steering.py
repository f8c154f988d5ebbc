"""What a family says steers its memory is all that does: held against the models' own code and against formulas."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ssmdiag import known_families, read_checkpoint, recognise
from ssmdiag.compare.conversion import LEFT_BEHIND, NOT_FOLLOWED, LayerProof, Outcome, prove_conversion
from ssmdiag.families import Family, Spelling
from tests.families.steered import STEERED
from tests.families.synthetic import config as settings_for
from tests.families.synthetic import path_for, state_dict
from tests.families.tiny_transformers import TINY, save_tiny, tiny_model

State = dict[str, torch.Tensor]

CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one weight": lambda t: t + 0.1 * t * (t.abs() == t.abs().max()),
    "rows": lambda t: t.flatten().roll(1).reshape(t.shape) if t.ndim == 1 or len(t) == 1 else t.roll(1, 0),
    "zeroed": torch.zeros_like,
}
"""What goes wrong in conversions: a weight, rows that went to another place, a tensor that was never filled."""
MORE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "columns": lambda t: t.roll(1, -1),
    "transposed": lambda t: t.mT.reshape(t.shape) if t.ndim > 1 else t,
    "sign": torch.neg,
    "noise": lambda t: t * (1 + 0.01 * torch.randn(t.shape, generator=torch.Generator().manual_seed(3))),
}
BEHIND = re.compile(
    r"\.(?:out_proj|o_proj|dense|output|linear_out|linear_y|in_proj_z|output_gate|ogate_preact|g_proj|norm|o_norm|"
    r"multihead_norm|D)(?:\.weight|\.bias)?$"
)
"""Tensors behind the memory or beside it: they change what is made of it, not what it holds."""
FAST = ("mamba",)


def write(directory: Path, state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def prove(a: Path, b: Path) -> LayerProof:
    """Return the proof of the only layer; of one with several branches, of one that is not proven, if any."""
    proof = prove_conversion(a, b)
    assert not proof.problems
    assert proof.exit_code() == (0 if all(layer.proven for layer in proof.layers) else 1)
    return next((layer for layer in proof.layers if not layer.proven), proof.layers[0])


def caught(layer: LayerProof, name: str) -> bool:
    """Whether a changed tensor was named: among those that steer, or by the decay it holds."""
    if layer.outcome is not Outcome.DIFFERS:
        return False
    named = layer.steering is not None and name in [d.b for d in layer.steering.differing]
    moved = LEFT_BEHIND in layer.notes or (layer.spectrum is not None and layer.spectrum.value > layer.tolerance)
    return named or moved


def model_states(model: Any) -> list[torch.Tensor]:
    """Return what the first layer remembers of eight tokens, by the model's own code."""
    ids = torch.arange(1, 9)[None]
    kind = model.config.model_type
    if kind == "xlstm":
        seen: dict[str, torch.Tensor] = {}
        backend = next(m for name, m in model.named_modules() if name.endswith("mlstm_backend"))
        hook = backend.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
        with torch.no_grad():
            model(ids, use_cache=False)
        hook.remove()
        return [seen[name] for name in sorted(seen) if isinstance(seen[name], torch.Tensor)]
    with torch.no_grad():
        output = model(ids, use_cache=True)
    if kind == "rwkv":
        return [each[..., 0] for each in output.state[2:]]
    if kind == "recurrent_gemma":
        block = model.model.layers[0].temporal_block
        return [block.rg_lru.recurrent_states, block.conv1d_state]
    if kind == "minimax":
        return [output.past_key_values.get_linear_cache(0)]
    first = output.past_key_values.layers[0]
    return [*first.conv_states.values(), *first.recurrent_states.values()]


def moved(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return any(bool((a - b).abs().max() > 1e-5 * a.abs().max()) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "model_type", [pytest.param(kind, marks=[] if kind in FAST else [pytest.mark.slow]) for kind in TINY]
)
def test_whatever_moves_the_memory_of_a_model_is_caught_and_named(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type).float()
    config = model.config.to_dict()
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer = re.compile(r"\.(?:layers|blocks)\.0\.")
    state = {name: tensor for name, tensor in whole.items() if layer.search(name)}
    a = write(tmp_path / "a", state, config)
    path = recognise(read_checkpoint(a)).layers[0].path
    block = path.rpartition(".")[0] if path.endswith("rg_lru") else path
    assert prove(a, write(tmp_path / "b", state, config)).outcome is Outcome.SAME
    before = model_states(model)
    moving = 0
    for name in [name for name in state if name.startswith(f"{block}.")]:
        for change in CHANGES.values():
            changed = change(state[name])
            if torch.equal(changed, state[name]):
                continue
            model.load_state_dict({name: changed}, strict=False)
            moves = moved(before, model_states(model))
            moving += moves
            found = prove(a, write(tmp_path / "b", state | {name: changed}, config))
            assert not moves or caught(found, name), (name, found)
            assert not BEHIND.search(name) or found.outcome is Outcome.SAME, (name, found)
        model.load_state_dict({name: state[name]}, strict=False)
    assert moving >= 3


SELECTIVE = [
    pytest.param(
        family,
        spelling,
        id=f"{family.name}:{spelling.name}",
        marks=[] if spelling is family.spellings[0] else [pytest.mark.slow],
    )
    for family in known_families()
    if family.memory == "nominal"
    for spelling in family.spellings
    if not spelling.name.endswith(("GPTQ or AWQ", "compressed-tensors"))
]
each_selective = pytest.mark.parametrize(("family", "spelling"), SELECTIVE)


def steered_state(family: Family, spelling: Spelling, path: str | None = None) -> tuple[State, dict[str, str]]:
    """Return one layer of a spelling with all that steers it, and the full names of that."""
    path = path or path_for(spelling)
    shapes = next(table for start, table in STEERED[family.name].items() if spelling.name.startswith(start))
    generator = torch.Generator().manual_seed(5)
    state = state_dict(spelling, path=path)
    names = {}
    if family.name == "mamba3":
        state[f"{path}.out_proj.weight"] = torch.zeros(4, 8)
    for local, shape in shapes.items():
        name = f"{path.rpartition('.')[0]}.{local[2:]}" if local.startswith("^.") else f"{path}.{local}"
        state[name] = torch.randn(shape, generator=generator)
        names[local] = name
    return state, names


def test_every_selective_family_says_what_steers_it() -> None:
    assert set(STEERED) == {family.name for family in known_families() if family.memory == "nominal"}
    assert all(family.steering for family in known_families() if family.memory == "nominal")


@pytest.mark.one_in(28)
@each_selective
def test_every_tensor_that_steers_is_compared_and_a_change_of_any_is_named(
    family: Family, spelling: Spelling, tmp_path: Path
) -> None:
    settings = settings_for(family, spelling)
    state, steering = steered_state(family, spelling)
    a = write(tmp_path / "a", state, settings)
    equal = prove(a, write(tmp_path / "b", state, settings))
    assert equal.outcome is Outcome.SAME, equal
    assert equal.steering is not None
    assert {one.a for one in equal.steering.compared} >= set(steering.values())
    for name in dict.fromkeys([*steering.values(), *(one.a for one in equal.steering.compared)]):
        changes = {what: change(state[name]) for what, change in {**CHANGES, **MORE}.items()}
        if "in_proj." in name or "ssm_in." in name:  # not one of the gate's weights
            changes["one weight"] = state[name].index_fill(0, torch.tensor(_steering_row(family, name)), 3.0)
        if name in steering.values():  # of those that hold the decay itself less is asked
            changes["a thousandth of one weight"] = state[name].clone()
            row = changes["a thousandth of one weight"][_steering_row(family, name)].view(-1)
            row[row.abs().argmax()] *= 1.001
        for what, changed in changes.items():
            if torch.equal(changed, state[name]):
                continue
            found = prove(a, write(tmp_path / "b", state | {name: changed}, settings))
            assert caught(found, name), (name, what, found)


def _steering_row(family: Family, name: str) -> int:
    """Return a row that is none of the gate's, which stand first in Mamba-2 and last elsewhere, nor of Mamba-2's Δ."""
    return -5 if family.name in ("mamba2", "mamba3") and ("in_proj" in name or "ssm_in" in name) else 0


@pytest.mark.one_in(6)
@each_selective
def test_rounded_and_renamed_copies_are_proven(family: Family, spelling: Spelling, tmp_path: Path) -> None:
    settings = settings_for(family, spelling)
    state, _ = steered_state(family, spelling)
    renamed = path_for(spelling).replace("net.", "model.decoder.")
    a = write(tmp_path / "a", state, settings)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        cast = {name: tensor.to(dtype) for name, tensor in state.items()}
        assert prove(a, write(tmp_path / "b", cast, settings)).outcome is Outcome.SAME
    other, _ = steered_state(family, spelling, renamed)
    found = prove(a, write(tmp_path / "b", other, settings))
    assert found.outcome is Outcome.SAME
    assert found.a != found.b


@pytest.mark.one_in(6)
@each_selective
def test_without_what_every_layer_has_nothing_is_proven(family: Family, spelling: Spelling, tmp_path: Path) -> None:
    state, steering = steered_state(family, spelling)
    required = {f"{path_for(spelling)}.{local}" for local in spelling.tensors}
    bare = {name: tensor for name, tensor in state.items() if name not in set(steering.values()) - required}
    a = write(tmp_path / "a", bare, settings_for(family, spelling))
    assert prove(a, write(tmp_path / "b", bare, settings_for(family, spelling))).outcome is Outcome.SAME
    another = {**bare, "embedding.weight": torch.zeros(2, 2)}
    found = prove(a, write(tmp_path / "b", another, settings_for(family, spelling)))
    if found.outcome is not Outcome.SAME:
        assert found.outcome is Outcome.NOMINAL
        assert found.steering is not None
        assert any("has no" in sentence for sentence in found.steering.unseen)
    else:
        assert set(required) & set(steering.values()), "proven without anything that steers it"


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type", ["kimi_linear", "bailing_hybrid", "olmo_hybrid", "nemotron_h", "qwen3_next", "lara_mini"]
)
def test_names_in_memory_and_on_disk_are_one_model(model_type: str, tmp_path: Path) -> None:
    model, directory = save_tiny(model_type, tmp_path)
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    proof = prove_conversion(directory, write(tmp_path / "memory", whole, model.config.to_dict()))
    assert proof.exit_code() == 0, [layer.steering and layer.steering.unseen for layer in proof.layers]
    assert all(layer.steering and layer.steering.compared for layer in proof.layers)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "zamba"])
def test_a_matrix_with_more_rows_is_not_the_same_whichever_rows_steer(name: str, tmp_path: Path) -> None:
    family = next(family for family in known_families() if family.name == name)
    state, steering = steered_state(family, family.spellings[0])
    a = write(tmp_path / "a", state, {})
    matrix = steering["in_proj.weight"]
    for longer in (torch.cat([state[matrix], state[matrix]]), torch.cat([state[matrix], torch.ones(1, 4)])):
        assert caught(prove(a, write(tmp_path / "b", state | {matrix: longer}, {})), matrix)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32])
def test_a_projection_of_another_kind_of_number_is_not_compared(dtype: torch.dtype, tmp_path: Path) -> None:
    family = next(family for family in known_families() if family.name == "gla")
    state, steering = steered_state(family, family.spellings[0])
    a = write(tmp_path / "a", state, {})
    name = steering["gk_proj.0.weight"]
    found = prove(a, write(tmp_path / "b", state | {name: state[name].to(dtype)}, {}))
    assert found.outcome is Outcome.NOMINAL
    assert found.steering is not None
    assert "gk_proj.0.weight is" in found.steering.unseen[0]


def _as_llama_cpp(state: State) -> State:
    """Return Mamba-1 as llama.cpp's converter names it: `ssm_a` is −exp(A_log), a convolution is (channel, tap)."""
    names = {"dt_proj": "ssm_dt", "x_proj": "ssm_x", "in_proj": "ssm_in", "conv1d": "ssm_conv1d"}
    renamed = {}
    for name, tensor in state.items():
        module, _, ending = name.removeprefix("net.layers.3.").partition(".")
        tensor = tensor.squeeze(1) if name.endswith("conv1d.weight") else tensor
        renamed[f"blk.3.{names.get(module, module)}.{ending}"] = tensor
    renamed["blk.3.ssm_a"] = -renamed.pop("blk.3.A_log.").exp()
    return renamed


def _as_fla(state: State) -> State:
    """Return RWKV-7 as fla stores it: low-rank factors as (output, input), vectors flat."""
    renamed = {}
    for name, tensor in state.items():
        local = name.rpartition(".")[0].rpartition(".")[2] if name.endswith(".weight") else name.rpartition(".")[2]
        if local in ("key", "value", "receptance"):
            renamed[f"net.layers.3.{local[0]}_proj.weight"] = tensor
        elif local in ("w0", "a0"):
            renamed[f"net.layers.3.{local[0]}_lora.lora.2.bias"] = tensor.flatten()
        elif local in ("w1", "a1", "w2", "a2"):
            renamed[f"net.layers.3.{local[0]}_lora.lora.{2 * (local[1] == '2')}.weight"] = tensor.T
        else:
            renamed[f"net.layers.3.{local}"] = tensor.flatten() if local.startswith("k_") else tensor
    return renamed


def _as_deepmind(state: State) -> State:
    """Return RG-LRU as DeepMind stores it, its convolution as (tap, channel)."""
    names = {
        "recurrent_param": "a_param", "recurrent_gate_weight": "a_gate.w", "recurrent_gate_bias": "a_gate.b",
        "input_gate_weight": "input_gate.w", "input_gate_bias": "input_gate.b",
    }  # fmt: skip
    renamed = {}
    for name, tensor in state.items():
        head, _, local = name.rpartition(".")
        if "conv_1d" in name:
            renamed[f"{head}.{local[0]}"] = tensor.squeeze(1).T if local == "weight" else tensor
        else:
            renamed[f"{head}.{names.get(local, local)}"] = tensor
    return renamed


def _fused(state: State) -> State:
    """Return xLSTM-large with its gates in one matrix and its q, k, v and output gate in another."""
    at = "net.layers.3."
    qkvo = [state[f"{at}{name}.weight"] for name in ("q", "k", "v")] + [torch.ones(4, 4)]
    gates = {kind: [state[f"{at}{gate}gate_preact.{kind}"] for gate in "if"] for kind in ("weight", "bias")}
    fused = {f"{at}ifgate_preact.{kind}": torch.cat(both) for kind, both in gates.items()}
    return {**fused, f"{at}qkv_opreact.weight": torch.cat(qkvo)}


CONVERSIONS: dict[tuple[str, int], Callable[[State], State]] = {
    ("mamba", 0): _as_llama_cpp,
    ("rwkv7", 0): _as_fla,
    ("rg_lru", 0): _as_deepmind,
    ("mlstm", 0): _fused,
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("name", "number"), CONVERSIONS)
def test_another_spelling_of_one_layer_is_the_same_and_a_change_in_it_is_caught(
    name: str, number: int, tmp_path: Path
) -> None:
    family = next(family for family in known_families() if family.name == name)
    spelling = family.spellings[number]
    state, steering = steered_state(family, spelling)
    for local in ("in_proj.bias", "dt_layernorm.weight"):
        state.pop(steering.pop(local, ""), None)
    a = write(tmp_path / "a", state, {})
    found = prove(a, write(tmp_path / "b", CONVERSIONS[name, number](state), {}))
    assert found.outcome is Outcome.SAME, found
    assert found.steering is not None
    assert {one.a for one in found.steering.compared} == set(steering.values())
    for tensor in steering.values():
        changed = state | {tensor: state[tensor].roll(1, 0) + 0.01}
        found = prove(a, write(tmp_path / "b", CONVERSIONS[name, number](changed), {}))
        assert found.outcome is Outcome.DIFFERS
        assert found.steering is not None
        assert tensor in [one.a for one in found.steering.differing] or tensor in ("dt_proj.bias",)


@pytest.mark.slow
def test_the_grouped_projections_of_qwen3_next_are_ungrouped_as_its_own_code_does(tmp_path: Path) -> None:
    model = tiny_model("qwen3_next").float()
    mixer = model.model.layers[0].linear_attn
    config = model.config.to_dict()
    path = "model.layers.0.linear_attn."
    state = {f"{path}{name}": tensor.clone() for name, tensor in mixer.state_dict().items()}
    columns = torch.eye(model.config.hidden_size)
    with torch.no_grad():
        parts = mixer.fix_query_key_value_ordering(
            *(projection(columns[None]) for projection in (mixer.in_proj_qkvz, mixer.in_proj_ba))
        )
    q, k, v, z, b, a = (part[0].flatten(1).T for part in parts)
    split = {name: tensor for name, tensor in state.items() if "in_proj" not in name}
    split |= {
        f"{path}in_proj_qkv.weight": torch.cat([q, k, v]),
        f"{path}in_proj_z.weight": z,
        f"{path}in_proj_b.weight": b,
        f"{path}in_proj_a.weight": a,
    }
    grouped = write(tmp_path / "a", state, config)
    assert prove(grouped, write(tmp_path / "b", split, config)).outcome is Outcome.SAME
    unknown = {key: value for key, value in config.items() if not key.startswith("linear_")}
    found = prove(write(tmp_path / "c", state, unknown), write(tmp_path / "b", split, unknown))
    assert found.outcome is Outcome.NOMINAL
    assert prove(tmp_path / "c", write(tmp_path / "d", state, unknown)).outcome is Outcome.SAME


def test_multipliers_of_falcon_h1_that_llama_cpp_folds_into_the_weights_are_folded_here(tmp_path: Path) -> None:
    family = next(family for family in known_families() if family.name == "mamba2")
    state, _ = steered_state(family, family.spellings[0])
    at = "net.layers.3."
    state = {name: tensor for name, tensor in state.items() if not name.endswith("in_proj.bias")}
    config = {"ssm_in_multiplier": 0.5, "ssm_multipliers": [0.3, 1.5, 2.0, 3.0, 0.25]}
    factors = torch.tensor([0.3] * 4 + [1.5] * 4 + [2.0] * 4 + [3.0] * 4 + [0.25] * 4)[:, None] * 0.5
    folded = {
        "blk.3.ssm_a": -state[f"{at}A_log"].exp()[:, None],
        "blk.3.ssm_d": state[f"{at}D"][:, None],
        "blk.3.ssm_dt.bias": state[f"{at}dt_bias"],
        "blk.3.ssm_in.weight": factors * state[f"{at}in_proj.weight"],
        "blk.3.ssm_conv1d.weight": state[f"{at}conv1d.weight"].squeeze(1),
        "blk.3.ssm_conv1d.bias": state[f"{at}conv1d.bias"],
    }
    a = write(tmp_path / "a", state, config)
    assert prove(a, write(tmp_path / "b", folded, {})).outcome is Outcome.SAME
    unfolded = folded | {"blk.3.ssm_in.weight": state[f"{at}in_proj.weight"]}
    assert prove(a, write(tmp_path / "b", unfolded, {})).outcome is Outcome.DIFFERS


def _in_another_order(state: State, order: torch.Tensor, path: str = "net.layers.3.") -> State:
    """Return Mamba-1 with its channels moved as a whole: what it computes is the same."""
    moved = dict(state)
    for local in ("A_log", "D", "dt_proj.weight", "dt_proj.bias", "conv1d.weight", "conv1d.bias"):
        if f"{path}{local}" in state:
            moved[f"{path}{local}"] = state[f"{path}{local}"][order]
    moved[f"{path}x_proj.weight"] = state[f"{path}x_proj.weight"][:, order]
    for local in ("in_proj.weight", "in_proj.bias"):
        moved[f"{path}{local}"] = torch.cat([half[order] for half in state[f"{path}{local}"].chunk(2)])
    return moved


def test_channels_of_mamba_that_moved_as_a_whole_are_followed_and_one_tensor_that_did_not_is_caught(
    tmp_path: Path,
) -> None:
    family = next(family for family in known_families() if family.name == "mamba")
    state, _ = steered_state(family, family.spellings[0])
    moved = _in_another_order(state, torch.tensor([2, 0, 3, 1]))
    a = write(tmp_path / "a", state, {})
    found = prove(a, write(tmp_path / "b", moved, {}))
    assert (found.outcome, found.proven) == (Outcome.REORDERED, True), found
    assert any("channels in another order" in note for note in found.notes)
    for local in ("dt_proj.weight", "x_proj.weight", "conv1d.weight", "conv1d.bias", "in_proj.weight"):
        left = {**moved, f"net.layers.3.{local}": state[f"net.layers.3.{local}"]}
        assert not prove(a, write(tmp_path / "b", left, {})).proven, local


def test_heads_in_another_order_are_not_said_to_differ_where_it_is_not_followed(tmp_path: Path) -> None:
    family = next(family for family in known_families() if family.name == "kda")
    state, _ = steered_state(family, family.spellings[0])
    order = torch.tensor([1, 0, 3, 2])
    path = path_for(family.spellings[0])
    moved = dict(state)
    for name, tensor in state.items():
        heads = tensor.reshape(-1).shape[0] % 4 == 0 and (tensor.shape[0] % 4 == 0 or tensor.ndim == 4)
        if heads and "_a_proj" not in name:
            axis = 2 if tensor.ndim == 4 else 0
            moved[name] = tensor.unflatten(axis, (4, -1)).index_select(axis, order).flatten(axis, axis + 1)
    assert moved[f"{path}.A_log"].shape == state[f"{path}.A_log"].shape
    found = prove(write(tmp_path / "a", state, {}), write(tmp_path / "b", moved, {}))
    assert found.outcome is Outcome.NOMINAL, found
    assert found.steering is not None
    assert NOT_FOLLOWED in found.steering.unseen
