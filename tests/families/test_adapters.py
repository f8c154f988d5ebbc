"""Files of PEFT adapters are called what they are, and their base is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssmdiag import diagnose
from ssmdiag.errors import UnknownFamilyError


def write_adapter(folder: Path, config: str | None) -> Path:
    folder.mkdir()
    state = {}
    for layer in range(2):
        for module, (rows, columns) in {"in_proj": (12, 4), "x_proj": (6, 8)}.items():
            name = f"base_model.model.backbone.layers.{layer}.mixer.{module}"
            state |= {f"{name}.lora_A.weight": torch.ones(2, columns), f"{name}.lora_B.weight": torch.ones(rows, 2)}
    save_file(state, folder / "adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(config)
    return folder


@pytest.mark.parametrize("inside", [False, True])
def test_an_adapter_names_its_base_and_what_it_adapts(inside: bool, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", json.dumps({"base_model_name_or_path": "state-spaces/mamba-370m-hf"}))
    with pytest.raises(UnknownFamilyError) as refused:
        diagnose(folder / "adapter_model.safetensors" if inside else folder)
    assert "is a PEFT adapter of state-spaces/mamba-370m-hf: 8 tensors" in refused.value.seen
    assert refused.value.details == ("it adapts in_proj (2), x_proj (2)",)
    assert "inspect hf://state-spaces/mamba-370m-hf;" in (refused.value.advice or "")


@pytest.mark.parametrize("config", [None, "[1", "[]", "{}", '{"base_model_name_or_path": 3}'])
def test_an_adapter_without_a_usable_config_is_still_called_one(config: str | None, tmp_path: Path) -> None:
    with pytest.raises(
        UnknownFamilyError, match=r"PEFT adapter of a model that no adapter_config.json .* names"
    ) as refused:
        diagnose(write_adapter(tmp_path / "lora", config))
    assert "hf://" not in (refused.value.advice or "")


def test_a_base_on_a_disk_or_with_strange_characters_is_no_address(tmp_path: Path) -> None:
    base = "/data/\x1b[31mbase"
    with pytest.raises(UnknownFamilyError) as refused:
        diagnose(write_adapter(tmp_path / "lora", json.dumps({"base_model_name_or_path": base})))
    assert "inspect the base model;" in (refused.value.advice or "")
    assert "\x1b" not in str(refused.value)
