"""What families say that they cover is what transformers' own registry builds, type by type."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ssmdiag import extract_recurrences, known_families, recognise
from ssmdiag.checkpoint.live import LiveModule, as_checkpoint
from ssmdiag.errors import AssumptionError
from ssmdiag.families.coverage import find_families
from tests.checkpoint.formats.llama_cpp import ARCHITECTURES
from tests.families.test_torch_recurrences import layers_of
from tests.families.tiny_transformers import MORE, TINY, tiny_model

COVERED = {
    model_type: {family.name for family in known_families() if model_type in family.model_types}
    for model_type in sorted({model_type for family in known_families() for model_type in family.model_types})
}
FINITE = {"short_convolution"}
"""Families without a recurrence, whose layers are not counted."""

OF_A_RECURRENCE = {"A_log", "slope_rate", "recurrent_param", "time_decay", "fgate_preact"}
"""Parameters, buffers and modules that only a module with a recurrence has in transformers."""

NOT_BY_DEFAULT = ("qwen4_exp", "qwen4_exp_text")
"""Types whose default configuration cannot be built: they are built tiny."""


def recurrent_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model that carry a recurrence, by their class in torch or what they hold."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.RNNBase | nn.RNNCellBase)
        or OF_A_RECURRENCE & (module._parameters.keys() | module._buffers.keys() | module._modules.keys())
    ]


def families_of(model: nn.Module) -> Counter[str]:
    """Return how many layers of each family are recognised in a live model, by names and shapes alone."""
    found = recognise(as_checkpoint(LiveModule(model), model))  # its weights may have no values
    assert not found.problems
    assert not found.incomplete
    return Counter(layer.family.name for layer in found.layers)


def _settings(model_type: str) -> dict[str, Any]:
    return MORE[model_type] if model_type in NOT_BY_DEFAULT else {}


def build(model_type: str) -> nn.Module | None:
    """Return a model of a type at its default size, without memory for its weights; None where it cannot be built."""
    import transformers
    from transformers.models.auto import modeling_auto

    mappings = [getattr(modeling_auto, name) for name in dir(modeling_auto) if name.endswith("MAPPING")]
    mappings.sort(key=lambda mapping: mapping is not modeling_auto.MODEL_MAPPING)
    for mapping in mappings:
        try:
            config = transformers.AutoConfig.for_model(model_type, **_settings(model_type))
            kind = mapping[type(config)]
            with torch.device("meta"):
                model: nn.Module = (kind[0] if isinstance(kind, tuple) else kind)(config)
        except Exception:  # what a default configuration lacks, or a mapping names in vain, differs from type to type
            continue
        return model
    return None


@pytest.mark.one_in(8)
@pytest.mark.parametrize("model_type", [*TINY, *MORE])
def test_a_tiny_model_is_recognised_as_the_family_that_covers_its_type(model_type: str) -> None:
    assert_covered(model_type, tiny_model(model_type))


def assert_covered(model_type: str, model: nn.Module) -> None:
    """Hold what is recognised in a model against what families cover, and against its own modules."""
    found = families_of(model)
    assert found.keys() == COVERED.get(model_type, set()), model_type
    own = len(recurrent_modules(model))
    assert sum(count for family, count in found.items() if family not in FINITE) == own, model_type


def registry() -> list[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return sorted(CONFIG_MAPPING_NAMES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("letter", sorted({model_type[0].lower() for model_type in registry()}))
def test_every_type_that_transformers_builds_with_a_recurrence_is_covered_and_no_other(letter: str) -> None:
    for model_type in registry():
        if model_type[0].lower() != letter:
            continue
        model = build(model_type)
        if model is None:
            assert model_type not in COVERED, f"{model_type} cannot be built"
        else:
            assert_covered(model_type, model)


def test_gguf_architectures_are_llama_cpps_own_and_have_a_recurrence() -> None:
    from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSORS

    recurrent = {
        MODEL_ARCH_NAMES[arch]
        for arch, tensors in MODEL_TENSORS.items()
        if any(tensor.name.startswith(("SSM_A", "TIME_MIX", "SHORTCONV")) for tensor in tensors)
    }
    covered = {family.name: set(family.gguf) for family in known_families()}
    assert set().union(*covered.values()) <= recurrent
    for model_type, architecture in ARCHITECTURES.items():
        assert MODEL_ARCH_NAMES[architecture] in set().union(*(covered[name] for name in COVERED[model_type]))


@pytest.mark.parametrize(
    ("name", "families"),
    [
        ("mamba", ["mamba"]), ("Mamba", ["mamba"]), ("mamba-2", ["mamba2"]), ("MAMBA_2", ["mamba2"]),
        ("falcon_mamba", ["mamba"]), ("falcon-h1", ["mamba2"]), ("qwen3_next", ["gated_delta_net"]),
        ("Qwen3-Next", ["gated_delta_net"]), ("Gated DeltaNet", ["gated_delta_net"]), ("minLSTM", ["min_gru"]),
        ("lindermanlab/S5", ["s5"]), ("LSTM", ["lstm"]), ("torch.nn.GRU", ["gru"]), ("xlstm", ["mlstm"]),
    ],
)  # fmt: skip
def test_a_family_is_found_by_what_users_call_it(name: str, families: list[str]) -> None:
    assert [family.name for family in find_families(name, known_families())] == families


def test_a_name_of_several_families_finds_them_all() -> None:
    assert {"gla", "hgrn", "rwkv7"} <= {family.name for family in find_families("fla", known_families())}


def test_a_mistyped_name_is_answered_with_what_is_close() -> None:
    with pytest.raises(AssumptionError, match="architecture is called qwen3_nex") as refused:
        find_families("qwen3_nex", known_families())
    assert "qwen3_next" in (refused.value.advice or "")
    with pytest.raises(AssumptionError) as refused:
        find_families("xyzzy", known_families())
    assert refused.value.advice == "ssmdiag families"


TORCH_OWN = sorted(model_type for model_type, names in COVERED.items() if names & {"lstm", "gru"})


@pytest.mark.one_in(7)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", TORCH_OWN)
def test_gates_of_the_lstms_and_grus_of_transformers_are_their_modules_own(model_type: str, tmp_path: Path) -> None:
    """The slope of the next cell, or state, in the last, at zero input and state, by the model's own modules."""
    model = build(model_type)
    assert model is not None
    own: dict[str, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            module = module.to_empty(device="cpu").double()
            generator = torch.Generator().manual_seed(len(own))
            with torch.no_grad():
                for weight in module.parameters():
                    weight.copy_(0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
            state |= {f"{path}.{name}": value for name, value in module.state_dict().items()}
            slopes = layer_slopes(module)
            several = [f" (l{number})" for number in range(len(slopes))] if len(slopes) > 1 else [""]
            own |= {f"{path}{branch}": slope for branch, slope in zip(several, slopes, strict=True)}
    torch.save(state, tmp_path / "model.pt")
    found = extract_recurrences(tmp_path / "model.pt")
    assert {recurrence.family for recurrence in found} == COVERED[model_type]
    assert {recurrence.layer for recurrence in found} == own.keys()
    for recurrence in found:
        decay = recurrence.log_eigenvalues[:, 0].real.exp()
        torch.testing.assert_close(decay, own[recurrence.layer], rtol=1e-12, atol=0)


def layer_slopes(module: Any) -> list[torch.Tensor]:
    """Return the slope of every layer's gate; of a GRU without what its matrix feeds back."""
    if isinstance(module, nn.GRUCell):
        bare = copy.deepcopy(module)
        with torch.no_grad():
            bare.weight_hh.zero_()
        state = torch.zeros(1, module.hidden_size, dtype=torch.float64, requires_grad=True)
        after = bare(torch.zeros(1, module.input_size, dtype=torch.float64), state)
        return [torch.autograd.grad(after.sum(), state)[0][0]]
    assert isinstance(module, nn.LSTM)
    slopes = []
    for single in layers_of(module):
        zero = torch.zeros(1, 1, module.hidden_size, dtype=torch.float64)
        cell = torch.zeros_like(zero, requires_grad=True)
        after = single(torch.zeros(1, 1, single.input_size, dtype=torch.float64), (zero, cell))[1][1]
        slopes.append(torch.autograd.grad(after.sum(), cell)[0].flatten())
    return slopes
