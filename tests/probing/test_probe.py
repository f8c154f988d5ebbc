"""What a live model does with its memory: against the decays of its own scan, and without a trace left on the model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ssmdiag
from ssmdiag.errors import SsmdiagError
from ssmdiag.probing.probe import ProbedMemory
from tests.families.tiny_transformers import tiny_model
from tests.probing.own_scans import recording
from tests.tolerances import RELATIVE


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(seed))


def probed(model: nn.Module, batches: Any, **options: Any) -> ProbedMemory:
    """Return what was observed; the use of the past has tests of its own."""
    return ssmdiag.probe(model, batches, **{"cuts": 0, **options})


@pytest.mark.parametrize("model_type", ["mamba2", pytest.param("mamba", marks=pytest.mark.slow)])
def test_retention_is_that_of_the_decays_the_model_hands_to_its_own_scan(model_type: str) -> None:
    model = tiny_model(model_type)
    x = tokens(2, 40)
    found = probed(model, [x], positions=5)
    with recording(model) as scans, torch.no_grad():
        model(x, use_cache=False)
    assert len(found.layers) == len(scans) == 2
    for layer, log_decay in zip(found.layers, scans, strict=True):
        assert layer.observed is not None
        total = torch.cat([torch.zeros_like(log_decay[:, :1]), log_decay.cumsum(1)], 1)
        at = torch.tensor([20, 25, 30, 35, 40])
        for lag, left in layer.observed.retention:
            own = (total[:, at] - total[:, at - lag]).exp().mean()
            assert left == pytest.approx(float(own), rel=1e-7)  # transformers' scan is given A in float32
        slowest = log_decay.amax(-1)
        assert layer.observed.reset == pytest.approx(float((slowest <= math.log(0.5)).double().mean()))
        assert layer.observed.hold == pytest.approx(float((slowest >= math.log(0.99)).double().mean()))


def test_what_is_nominal_is_what_the_weights_say() -> None:
    model = tiny_model("mamba2")
    found = probed(model, [tokens(1, 32)])
    for layer, recurrence in zip(found.layers, read(model), strict=True):
        assert layer.nominal is not None
        assert layer.nominal.max == float(recurrence.half_life.max())
        for lag, left in layer.nominal_retention:
            assert left == pytest.approx(float(torch.exp(-recurrence.rate * lag).mean()), rel=RELATIVE["float64"])


def read(model: nn.Module) -> list[ssmdiag.Recurrence]:
    return ssmdiag.extract_recurrences(ssmdiag.read_module(model))


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_is_left_as_it_was(fails: bool) -> None:
    model = tiny_model("mamba2").train()
    model.backbone.layers[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    torch.manual_seed(3)
    random = torch.get_rng_state()

    def batches() -> Iterator[Tensor]:
        yield tokens(1, 16)
        if fails:
            raise RuntimeError("the disk is gone")
        yield tokens(1, 16, seed=2)

    if fails:
        with pytest.raises(RuntimeError, match="the disk is gone"):
            ssmdiag.probe(model, batches(), cuts=1)
    else:
        ssmdiag.probe(model, batches(), cuts=1)
    assert [part.training for part in model.modules()] == modes
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


class Answering(nn.Module):
    """A module with no recurrence that ssmdiag knows."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: Tensor) -> Tensor:
        answer = self.core(x)
        return answer[0] if isinstance(answer, tuple) else answer


class Taps(nn.Module):
    """A causal convolution of a few steps."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(3, 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(nn.functional.pad(x.transpose(1, 2), (3, 0)))
        return mixed.transpose(1, 2)


def test_a_module_without_a_selective_layer_has_its_use_measured() -> None:
    torch.manual_seed(0)
    found = ssmdiag.probe(Answering(Taps().double()), [torch.randn(2, 32, 3, dtype=torch.float64)], cuts=2)
    assert found.layers == ()
    assert found.digest is None
    assert found.use is not None
    assert found.use.by_cutting.tested == 16
    assert found.use_reason is None


@pytest.mark.parametrize(
    "core", [nn.LSTM(3, 5, batch_first=True), nn.GRU(3, 5, 2, bidirectional=True)], ids=["lstm", "gru"]
)
def test_the_gates_of_an_lstm_or_gru_are_observed_and_its_use_is_measured(core: nn.Module) -> None:
    torch.manual_seed(0)
    texts = torch.randn(2, 32, 3, dtype=torch.float64)
    found = ssmdiag.probe(Answering(core.double()), [texts], cuts=2)
    (layer,) = found.layers
    assert layer.error is None
    assert layer.observed is not None
    assert layer.channels == (5 if isinstance(core, nn.LSTM) else 10)
    assert found.digest is not None
    assert found.use is not None
    assert found.use.by_cutting.tested == 16
    assert found.use_reason is None


@pytest.mark.parametrize("core", [nn.LSTM, nn.Linear])
def test_a_model_without_values_is_told_to_load_them(core: Any) -> None:
    with torch.device("meta"):
        model = core(4, 4)
    with pytest.raises(SsmdiagError, match="no values") as refused:
        probed(model, [torch.zeros(2, 8, 4)])
    assert "load its weights first" in (refused.value.advice or "")


def test_batches_are_cut_to_the_length_and_those_too_short_are_named() -> None:
    model = tiny_model("mamba2")
    long, short = tokens(2, 50), tokens(1, 31)
    found = probed(model, [short, long], length=32)
    assert (found.length, found.texts, found.tokens) == (32, 2, 64)
    assert found.left_out == ("batch 1: its texts have 31 steps, fewer than 32",)
    assert found.layers == probed(model, [long[:, :32]]).layers
    with pytest.raises(SsmdiagError, match="no text that is long enough") as refused:
        probed(model, [short], length=32)
    assert "batch 1" in refused.value.sentence
    with pytest.raises(SsmdiagError, match="no text"):
        probed(model, [])


def test_without_a_length_that_of_the_first_batch_counts() -> None:
    found = probed(tiny_model("mamba2"), [tokens(1, 24), tokens(1, 40), tokens(1, 23)])
    assert (found.length, found.texts) == (24, 2)


def test_mappings_and_pairs_are_batches_too() -> None:
    model, x = tiny_model("mamba2"), tokens(2, 20)
    whole = probed(model, [x]).layers
    assert probed(model, [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": x}]).layers == whole
    assert probed(model, [(x, x)]).layers == whole
    assert probed(model, iter([x[:1], x[1:]])).layers[0].observed is not None


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"input_ids": tokens(1, 8), "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]])}, "batch 1 is padded"),
        (torch.zeros(5, dtype=torch.long), r"shape \(5,\)"),
        (torch.zeros(2, 5), r"shape \(2, 5\), float32"),
        (torch.zeros(2, 0, dtype=torch.long), r"shape \(2, 0\)"),
        ("a text", "batch 1 is a str"),
        ({"length": 3}, "batch 1 is a dict"),
    ],
    ids=["padded", "one row", "no features", "empty", "text", "no tensor"],
)
def test_what_is_no_batch_of_whole_texts_is_refused(batch: Any, said: str) -> None:
    with pytest.raises(SsmdiagError, match=said):
        probed(tiny_model("mamba2"), [batch])


def test_texts_one_by_one_and_together_are_the_same() -> None:
    model, x = tiny_model("mamba2"), tokens(5, 30)
    together, apart = probed(model, [x]), probed(model, x.split(1))
    for a, b in zip(together.layers, apart.layers, strict=True):
        assert a.observed is not None
        assert b.observed is not None
        assert [left for _, left in a.observed.retention] == pytest.approx([left for _, left in b.observed.retention])
        assert a.observed.half_life.median == pytest.approx(b.observed.half_life.median)


def test_progress_counts_batches_and_then_tokens() -> None:
    said: list[tuple[str, int, int | None]] = []
    model = tiny_model("mamba2")
    ssmdiag.probe(model, [tokens(1, 16)] * 3, cuts=1, on_progress=lambda *news: said.append(news))
    assert said[:3] == [("retention", 1, 3), ("retention", 2, 3), ("retention", 3, 3)]
    assert {what for what, _, _ in said[3:]} == {"use"}
    assert ssmdiag.probe(model, iter([tokens(1, 16)]), cuts=0, on_progress=lambda *news: said.append(news)).use is None
    assert said[-1] == ("retention", 1, None)


def test_the_use_of_the_past_is_of_the_first_texts() -> None:
    model, x = tiny_model("mamba2"), tokens(6, 16)
    found = ssmdiag.probe(model, x.split(2), cuts=1, use_texts=3)
    assert found.use is not None
    assert found.use.texts == 3
    assert found.texts == 6
    assert probed(model, [x]).use_reason == "it was not asked for"
    short = ssmdiag.probe(model, [x[:, :3]])
    assert short.use is None
    assert short.use_reason is not None
    assert "3 steps" in short.use_reason


def test_the_digest_is_that_of_the_recurrence_whatever_else_changes() -> None:
    model, x = tiny_model("mamba2"), [tokens(1, 16)]
    first = probed(model, x).digest
    with torch.no_grad():
        model.backbone.embeddings.weight.mul_(2)
    assert probed(model, x).digest == first
    with torch.no_grad():
        model.backbone.layers[1].mixer.A_log[3] += 1e-9
    assert probed(model, x).digest != first


def test_a_layer_with_nan_is_an_error_of_that_layer_alone() -> None:
    model = tiny_model("mamba2")
    x = [tokens(1, 16)]
    sound = probed(model, x).layers[0]
    with torch.no_grad():
        model.backbone.layers[1].mixer.dt_bias[3] = math.nan
    found = ssmdiag.probe(model, x, cuts=1)
    assert found.layers[0] == sound
    assert found.layers[1].observed is None
    assert found.layers[1].error is not None
    assert "NaN" in found.layers[1].error
    assert found.use is None
    assert found.use_reason is not None
    assert "NaN" in found.use_reason
