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

from ssmdiag import read_checkpoint, recognise
from ssmdiag.compare.conversion import LEFT_BEHIND, LayerProof, Outcome, prove_conversion
from tests.families.tiny_transformers import TINY, tiny_model

State = dict[str, torch.Tensor]

CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one weight": lambda t: t + 0.1 * t * (t.abs() == t.abs().max()),
    "rows": lambda t: t.flatten().roll(1).reshape(t.shape) if t.ndim == 1 or len(t) == 1 else t.roll(1, 0),
    "zeroed": torch.zeros_like,
}
"""What goes wrong in conversions: a weight, rows that went to another place, a tensor that was never filled."""
BEHIND = re.compile(
    r"\.(?:out_proj|o_proj|dense|output|linear_out|linear_y|in_proj_z|output_gate|ogate_preact|g_proj|norm|o_norm|"
    r"multihead_norm|D)(?:\.weight|\.bias)?$"
)
"""Tensors behind the memory or beside it: they change what is made of it, not what it holds."""
FAST = ("mamba", "mamba2", "qwen3_5_text", "recurrent_gemma")


def write(directory: Path, state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def prove(a: Path, b: Path) -> LayerProof:
    """Return the proof of the only layer."""
    proof = prove_conversion(a, b)
    assert not proof.problems
    (layer,) = proof.layers
    assert proof.exit_code() == (0 if layer.proven else 1)
    return layer


def caught(layer: LayerProof, name: str) -> bool:
    """Whether a changed tensor was named: among those that steer, or by the decay it holds."""
    if layer.outcome is not Outcome.DIFFERS:
        return False
    named = layer.steering is not None and name in [d.b for d in layer.steering.differing]
    moved = LEFT_BEHIND in layer.notes or (layer.spectrum is not None and layer.spectrum.value > layer.tolerance)
    return named or moved


def _states(model: Any) -> list[torch.Tensor]:
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


def _moved(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
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
    before = _states(model)
    moving = 0
    for name in [name for name in state if name.startswith(f"{block}.")]:
        if name.endswith(("slope_rate", "query_decay", "key_decay", "diagonal_decay")):
            continue  # buffers, computed from the settings
        for change in CHANGES.values():
            changed = change(state[name])
            if torch.equal(changed, state[name]):
                continue
            model.load_state_dict({name: changed}, strict=False)
            moves = _moved(before, _states(model))
            moving += moves
            found = prove(a, write(tmp_path / "b", state | {name: changed}, config))
            assert not moves or caught(found, name), (name, found)
            assert not BEHIND.search(name) or found.outcome is Outcome.SAME, (name, found)
        model.load_state_dict({name: state[name]}, strict=False)
    assert moving >= 3
