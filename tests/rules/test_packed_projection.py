"""SSM304: what steers the memory by the input, packed by the usual tools."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from torch import Tensor

from ssmdiag import diagnose
from tests.checkpoint.formats.llama_cpp import write_gguf
from tests.rules.healthy import save, trained_state
from tests.rules.planting import findings_of

CODE = "SSM304"


def nf4(state: dict[str, Tensor], ending: str) -> dict[str, Tensor]:
    """Store weights as bitsandbytes does in four bits: codes, two to a byte, with their scales beside them."""
    packed = dict(state)
    for name, values in state.items():
        if name.endswith(ending):
            packed[name] = torch.randint(0, 256, (values.numel() // 2, 1), dtype=torch.uint8)
            packed[f"{name}.absmax"] = torch.rand(-(-values.numel() // 64))
            packed[f"{name}.quant_state.bitsandbytes__nf4"] = torch.zeros(80, dtype=torch.uint8)
    return packed


def gptq(state: dict[str, Tensor], ending: str) -> dict[str, Tensor]:
    """Store weights as GPTQ does: no weight at all, four bits in int32, scales and zeros."""
    packed: dict[str, Tensor] = {}
    for name, values in state.items():
        if name.endswith(ending):
            stem = name.removesuffix("weight")
            packed[f"{stem}qweight"] = torch.randint(-(2**31), 2**31 - 1, (4, len(values)), dtype=torch.int32)
            packed[f"{stem}scales"] = torch.rand(1, len(values)).half()
            packed[f"{stem}g_idx"] = torch.zeros(32, dtype=torch.int32)
        else:
            packed[name] = values
    return packed


def fp8(state: dict[str, Tensor], ending: str) -> dict[str, Tensor]:
    return {n: v.to(torch.float8_e4m3fn) if n.endswith(ending) else v for n, v in state.items()}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("pack", [nf4, gptq, fp8])
@pytest.mark.parametrize(
    ("name", "weight"), [("mamba", "x_proj.weight"), ("mamba2", "in_proj.weight"), ("gated-deltanet", "a_proj.weight")]
)
def test_packed_projections_are_noted(pack: object, name: str, weight: str, tmp_path: Path) -> None:
    assert callable(pack)
    state = trained_state(name)
    assert any(key.endswith(weight) for key in state), sorted(state)[:20]
    found = findings_of(CODE, save(tmp_path / "m", pack(state, weight), {}))
    assert len(found) == 3
    assert {finding.severity for finding in found} == {"note"}
    assert found[0].message.startswith(f"{weight} is quantised or packed (")
    assert "the decays of single tokens are not known" in found[0].message


def test_packed_queries_keys_and_values_are_not_said_to_hide_the_decays(tmp_path: Path) -> None:
    found = findings_of(CODE, save(tmp_path / "m", gptq(trained_state("gated-deltanet"), "q_proj.weight"), {}))
    assert len(found) == 3
    assert "what is written and read is rounded, no weight of its decays is" in found[0].message


@pytest.mark.parametrize("pack", [nf4, gptq])
def test_a_packed_convolution_is_warned_of(pack: object, tmp_path: Path) -> None:
    assert callable(pack)
    found = findings_of(CODE, save(tmp_path / "m", pack(trained_state("mamba2"), "conv1d.weight"), {}))
    assert len(found) == 3
    assert {finding.severity for finding in found} == {"warning"}
    assert found[0].message.startswith("conv1d.weight is quantised or packed (")


def test_sixteen_bits_an_adapter_and_a_packed_embedding_are_no_such_thing(tmp_path: Path) -> None:
    state = trained_state("mamba")
    half = {name: values.bfloat16() for name, values in state.items()}
    assert not findings_of(CODE, save(tmp_path / "half", half, {}))
    adapted = state | {
        name.replace("x_proj.weight", f"x_proj.lora_{part}.default.weight"): torch.rand(4, 4)
        for name in state
        if name.endswith("x_proj.weight")
        for part in "AB"
    }
    assert not findings_of(CODE, save(tmp_path / "adapted", adapted, {}))
    outside = state | {"lm_head.qweight": torch.zeros(4, 4, dtype=torch.int32)}
    assert not findings_of(CODE, save(tmp_path / "outside", outside, {}))


def test_block_types_of_a_gguf_are_noted(tmp_path: Path) -> None:
    tensors = {
        "blk.0.ssm_a": -torch.arange(1, 17).float().repeat(64, 1),
        "blk.0.ssm_d": torch.ones(64),
        "blk.0.ssm_dt.bias": torch.linspace(-6, -2, 64),
        "blk.0.ssm_dt.weight": torch.rand(64, 4),
        "blk.0.ssm_x.weight": torch.rand(36, 64),
    }
    assert not findings_of(CODE, write_gguf(tmp_path / "plain.gguf", tensors))
    kinds = {"ssm_x.weight": gguf.GGMLQuantizationType.Q4_0}
    (finding,) = findings_of(CODE, write_gguf(tmp_path / "q4.gguf", tensors, kinds=kinds))
    assert finding.message.startswith("ssm_x.weight is quantised or packed (q4_0)")


def test_the_rest_of_the_diagnosis_stands(tmp_path: Path) -> None:
    packed = diagnose(save(tmp_path / "p", gptq(trained_state("mamba"), "x_proj.weight"), {}), memory=False)
    whole = diagnose(save(tmp_path / "w", trained_state("mamba"), {}), memory=False)
    assert packed.problems == ()
    assert [layer.half_life for layer in packed.layers] == [layer.half_life for layer in whole.layers]
