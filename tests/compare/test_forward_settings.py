"""Settings that move a memory without a weight are compared: held against the models' own code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ssmdiag import known_families
from ssmdiag.compare.conversion import LayerProof, Outcome, prove_conversion
from ssmdiag.reports import Settings
from ssmdiag.reports.compare.conversion import conversion_report
from ssmdiag.reports.compare.json import conversion_document
from ssmdiag.reports.json import render
from tests.families.synthetic import path_for, state_dict
from tests.families.test_steering import State, model_states, moved, steered_state, write
from tests.families.tiny_transformers import TINY, tiny_model

ELSEWHERE = {
    "vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings", "embedding_multiplier", "dtype",
    "layer_norm_epsilon", "rms_norm_eps",
}  # fmt: skip
"""Settings of the embedding, and what keeps a norm from dividing by zero."""
LIMITED = {"model_type": "mamba2", "time_step_limit": [0.01, 0.1], "hidden_act": "silu"}


def otherwise(name: str, value: Any) -> list[Any]:
    """Return values that a setting might have had."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [2 * value, value / 2 if isinstance(value, float) else max(1, value // 2)]
    if isinstance(value, str):
        return ["gelu"] * ("act" in name)
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, (int, float)) for item in value):
        return [[0.4 if math.isinf(item) else 0.3 + item / 2 for item in value]]
    return []


@pytest.mark.parametrize(
    "model_type", [pytest.param(kind, marks=[] if kind == "mamba2" else [pytest.mark.slow]) for kind in TINY]
)
def test_a_setting_that_moves_the_memory_of_the_same_weights_is_caught_and_named(
    model_type: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    model = tiny_model(model_type).float()
    config, whole = model.config.to_dict(), model.state_dict()
    first = {name: tensor for name, tensor in whole.items() if ".layers.0." in name or ".blocks.0." in name}
    a = write(tmp_path / "a", first, config)
    before = model_states(model)
    seen = set()
    for name, value in config.items():
        for other in [] if name in ELSEWHERE else otherwise(name, value):
            try:
                changed = transformers.AutoConfig.for_model(model_type, **{**TINY[model_type], name: other})
                twin = transformers.AutoModelForCausalLM.from_config(changed).float().eval()
                twin.load_state_dict(whole)
                moves = moved(before, model_states(twin))
            except Exception:  # not a model, or one of other shapes
                continue
            proof = prove_conversion(a, write(tmp_path / "b", first, twin.config.to_dict()))
            if moves:
                seen.add(name)
                assert proof.exit_code() == 1, (name, other)
            elif name.startswith("num_logits") or "norm" in name:
                assert proof.exit_code() == 0, (name, other)
    if model_type not in ("rwkv", "recurrent_gemma"):
        assert seen


def mamba2(tmp_path: Path, **sides: dict[str, Any]) -> LayerProof:
    family = next(family for family in known_families() if family.name == "mamba2")
    state, _ = steered_state(family, family.spellings[0])
    a, b = (write(tmp_path / name, state, config) for name, config in sides.items())
    return prove_conversion(a, b).layers[0]


def test_what_a_configuration_leaves_out_is_as_usual_and_without_one_nothing_is_known(tmp_path: Path) -> None:
    usual = {"model_type": "mamba2", "time_step_limit": [0.0, math.inf], "hidden_act": "swish", "n_groups": 1}
    assert mamba2(tmp_path, a=usual, b={"model_type": "mamba2"}).outcome is Outcome.SAME
    assert mamba2(tmp_path, a=usual, b={}).outcome is Outcome.SAME
    assert mamba2(tmp_path, a=LIMITED, b={"model_type": "mamba2"}).outcome is Outcome.DIFFERS
    found = mamba2(tmp_path, a=LIMITED, b={"lr": 0.1})
    assert found.outcome is Outcome.NOMINAL
    assert [(one.name, one.b) for one in found.settings] == [("time_step_limit", None)]
    assert found.notes[-1].startswith("time_step_limit is [0.01, 0.1] in a, and no setting of b says")
    assert mamba2(tmp_path, a={"lr": 0.1}, b=LIMITED).settings[0].a is None


def test_a_setting_under_another_name_or_spelled_otherwise_is_the_same(tmp_path: Path) -> None:
    null = {"ssm_cfg": {"dt_limit": [0.01, None], "ngroups": 2}}
    named = {"model_type": "bamba", "time_step_limit": [0.01, {"__float__": "Infinity"}], "mamba_n_groups": 2}
    assert mamba2(tmp_path, a=null, b=named).outcome is Outcome.SAME
    assert mamba2(tmp_path, a=null, b=named | {"mamba_n_groups": 4}).outcome is Outcome.DIFFERS


def test_of_a_model_of_several_parts_the_recurrent_ones_setting_is_enough(tmp_path: Path) -> None:
    parts = {"model_type": "x", "text_config": {"hidden_act": "silu"}, "vision_config": {"hidden_act": "gelu"}}
    assert mamba2(tmp_path, a=parts, b={"model_type": "y", "hidden_act": "silu"}).outcome is Outcome.SAME
    assert mamba2(tmp_path, a=parts, b={"model_type": "y", "hidden_act": "relu"}).outcome is Outcome.DIFFERS


def test_the_least_step_counts_where_a_model_type_holds_to_it(tmp_path: Path) -> None:
    def kept(model_type: str) -> LayerProof:
        return mamba2(
            tmp_path, **{s: {"model_type": model_type, "time_step_min": m} for s, m in (("a", 0.001), ("b", 0.1))}
        )

    assert kept("zamba2").outcome is Outcome.DIFFERS
    assert kept("mamba2").outcome is Outcome.SAME  # there it is of the initialisation


def test_norms_that_a_model_type_has_without_weights_are_held_against_its_other_name(tmp_path: Path) -> None:
    family = next(family for family in known_families() if family.name == "mamba")
    state: State = steered_state(family, family.spellings[0])[0]
    a = write(tmp_path / "a", state, {"model_type": "falcon_mamba"})
    for config, outcome in (
        ({"model_type": "falcon_mamba"}, Outcome.SAME),
        ({"general.architecture": "mamba", "mamba.ssm.dt_b_c_rms": True}, Outcome.SAME),
        ({"model_type": "mamba"}, Outcome.DIFFERS),
        ({}, Outcome.NOMINAL),
    ):
        assert prove_conversion(a, write(tmp_path / "b", state, config)).layers[0].outcome is outcome, config


def test_a_setting_that_differs_is_said_in_the_report_and_in_json(tmp_path: Path) -> None:
    family = next(family for family in known_families() if family.name == "mamba2")
    state, _ = steered_state(family, family.spellings[0])
    a = write(tmp_path / "a", state, LIMITED)
    proof = prove_conversion(a, write(tmp_path / "b", state, LIMITED | {"time_step_limit": [0.0, math.inf]}))
    text = " ".join(conversion_report(proof, Settings(width=80)).split())
    assert "not the same memory in the layer" in text
    assert "time_step_limit is [0.01, 0.1] in a, [0, inf] in b: Δ is kept within it while a prompt is read" in text
    stated = json.loads(render(conversion_document(proof)))["layers"][0]["settings"]
    assert [(one["name"], one["a"], one["b"]) for one in stated] == [("time_step_limit", [0.01, 0.1], [0.0, "inf"])]
    open_proof = prove_conversion(a, write(tmp_path / "b", state, {}))
    text = " ".join(conversion_report(open_proof, Settings(width=80)).split())
    assert "not proven" in text
    assert "no setting of b says" in text


def test_what_reads_both_ways_is_not_what_reads_one_way(tmp_path: Path) -> None:
    family = next(family for family in known_families() if family.name == "s4d")
    spelling = family.spellings[0]
    state = state_dict(spelling, path=path_for(spelling), optional=True)
    sides = [{"layer": {"bidirectional": both}, "model_type": "s4"} for both in (False, True)]
    a, b = (write(tmp_path / str(i), state, side) for i, side in enumerate(sides))
    assert prove_conversion(a, b).exit_code() == 1
    assert prove_conversion(a, a).exit_code() == 0
