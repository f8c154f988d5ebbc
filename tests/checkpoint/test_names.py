"""Stored names → the names families look for."""

from __future__ import annotations

import pytest

from ssmdiag.checkpoint.names import clean_names, layer_numbers, parametrized


@pytest.mark.parametrize(
    ("stored", "cleaned"),
    [
        ("_orig_mod.layers.0.A_log", "layers.0.A_log"),
        ("module.layers.0.A_log", "layers.0.A_log"),
        ("net._orig_mod.layers.0.A_log", "net.layers.0.A_log"),
        ("module._orig_mod.module.layers.0.A_log", "layers.0.A_log"),
        ("_fsdp_wrapped_module.layers.0._fsdp_wrapped_module.A_log", "layers.0.A_log"),
        ("layers.0._checkpoint_wrapped_module.mixer.A_log", "layers.0.mixer.A_log"),
        ("_forward_module.layers.0.A_log", "layers.0.A_log"),
        ("backbone.layers.0.mixer._fp32_params.A_log", "backbone.layers.0.mixer.A_log"),
        ("base_model.model.layers.0.A_log", "layers.0.A_log"),
        ("base_model.model.layers.0.x_proj.base_layer.weight", "layers.0.x_proj.weight"),
        ("layers.0.parametrizations.A_log.original", "layers.0.A_log"),
        ("parametrizations.A_log.original", "A_log"),
        ("layers.0.parametrizations.weight.original0", "layers.0.parametrizations.weight.original0"),
        ("['params']['layers_0']['nu_log']", "params.layers_0.nu_log"),
        (".blocks[3].ssm.A_diag", "blocks.3.ssm.A_diag"),
        ("layers.0.my_module.A_log", "layers.0.my_module.A_log"),
        ("schichten.0.zerfällt.λ_log", "schichten.0.zerfällt.λ_log"),
        ("module", "module"),
        ("", ""),
    ],
)
def test_wrappers_are_removed_as_whole_path_elements(stored: str, cleaned: str) -> None:
    assert clean_names([stored]) == [cleaned]


def test_the_value_at_the_end_of_every_name_is_a_box_of_flax() -> None:
    assert clean_names(["layers/0/A_log/value", "layers/0/dt_proj/bias/value"]) == [
        "layers.0.A_log",
        "layers.0.dt_proj.bias",
    ]
    assert clean_names(["['layers'][0]['D'].value", "['D'].value"]) == ["layers.0.D", "D"]


@pytest.mark.parametrize("stored", [["attn.value", "attn.key"], ["value", "a.value"], ["attn.keyvalue"], ["a.value.b"]])
def test_a_value_that_not_all_names_end_in_is_a_name(stored: list[str]) -> None:
    assert clean_names(stored) == stored


def test_slashes_of_jax_trees_become_dots() -> None:
    assert clean_names(["params/layers_0/seq/nu_log", "params/D"]) == ["params.layers_0.seq.nu_log", "params.D"]


def test_two_underscores_separate_where_no_name_has_a_dot() -> None:
    assert clean_names(["params__seq__nu_log", "D"]) == ["params.seq.nu_log", "D"]
    assert clean_names(["layer.my__weight"]) == ["layer.my__weight"]


def test_of_two_names_that_clean_alike_the_shortest_is_cleaned() -> None:
    stored = ["module.A_log", "A_log", "ema._orig_mod.x", "other"]
    assert clean_names(stored) == ["module.A_log", "A_log", "ema.x", "other"]
    assert clean_names(["module.A_log", "_orig_mod.A_log"]) == ["A_log", "_orig_mod.A_log"]


def test_equal_names_stay_apart() -> None:
    cleaned = clean_names(["a", "a", "a"])
    assert len(set(cleaned)) == 3
    assert cleaned[0] == "a"


def test_a_parametrised_attribute_is_named() -> None:
    assert parametrized("layers.0.parametrizations.log_dt.original") == "log_dt"
    assert parametrized("layers.0.log_dt") is None


def test_layers_sort_by_their_numbers() -> None:
    names = ["layers.10.m", "layers.9.m", "layers_2.m"]
    assert sorted(names, key=layer_numbers) == ["layers_2.m", "layers.9.m", "layers.10.m"]
