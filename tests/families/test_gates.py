"""mLSTM, GLA, HGRN, retention, lightning attention, minGRU: one gate each, from its published formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssmdiag import extract_recurrences
from ssmdiag.errors import LayerError, UnknownFamilyError
from ssmdiag.recurrence.modal import Recurrence
from tests.tolerances import RELATIVE

Read = Callable[..., list[Recurrence]]
Write = Callable[..., Path]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def log_sigmoid(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return -np.logaddexp(0.0, -x)


def decay(recurrence: Recurrence) -> np.ndarray[Any, Any]:
    return recurrence.log_eigenvalues.real.numpy()


class TestMLSTM:
    def large(self) -> dict[str, torch.Tensor]:
        path = "backbone.blocks.0.mlstm_layer"
        return {f"{path}.fgate_preact.bias": 6 * random(4), f"{path}.igate_preact.bias": random(4)}

    def test_forget_gate_of_xlstm_large_is_soft_capped_at_15(self, read_model: Read) -> None:
        state = self.large()
        (recurrence,) = read_model(state)
        bias = state["backbone.blocks.0.mlstm_layer.fgate_preact.bias"].numpy()
        np.testing.assert_allclose(
            decay(recurrence)[:, 0], log_sigmoid(15 * np.tanh(bias / 15)), rtol=RELATIVE["float64"]
        )
        assert [(a.option, a.value, a.source) for a in recurrence.assumptions] == [("gate_soft_cap", "15", "usual")]

    @pytest.mark.parametrize("cap", [7.5, None])
    def test_soft_cap_is_taken_from_config(self, cap: float | None, read_model: Read) -> None:
        state = self.large()
        (recurrence,) = read_model(state, {"gate_soft_cap": cap})
        bias = state["backbone.blocks.0.mlstm_layer.fgate_preact.bias"].numpy()
        capped = cap * np.tanh(bias / cap) if cap else bias
        np.testing.assert_allclose(decay(recurrence)[:, 0], log_sigmoid(capped), rtol=RELATIVE["float64"])

    def test_fused_gates_hold_the_forget_gate_second(self, read_model: Read) -> None:
        path = "backbone.blocks.0.mlstm_layer"
        bias = random(8)
        (recurrence,) = read_model({f"{path}.ifgate_preact.bias": bias, f"{path}.qkv_opreact.weight": random(6, 3)})
        expected = log_sigmoid(15 * np.tanh(bias.numpy()[4:] / 15))
        np.testing.assert_allclose(decay(recurrence)[:, 0], expected, rtol=RELATIVE["float64"])

    def test_original_cell_has_no_cap_and_keeps_tiny_rates(self, read_model: Read) -> None:
        path = "blocks.0.xlstm.mlstm_cell"
        bias = torch.tensor([3.0, 6.0, 40.0], dtype=torch.float64)
        (recurrence,) = read_model({f"{path}.fgate.bias": bias, f"{path}.igate.bias": random(3)})
        expected = [math.log1p(math.exp(-b)) for b in bias.tolist()]
        np.testing.assert_allclose(-decay(recurrence)[:, 0], expected, rtol=RELATIVE["float64"])


class TestGatedLinearAttention:
    def test_decay_is_sigmoid_of_the_bias_to_one_over_sixteen(self, read_model: Read) -> None:
        bias = random(8)
        (recurrence,) = read_model(
            {"model.layers.0.attn.gk_proj.1.bias": bias, "model.layers.0.attn.gk_proj.1.weight": random(8, 4)}
        )
        assert recurrence.log_eigenvalues.shape == (8, 1)
        np.testing.assert_allclose(decay(recurrence)[:, 0], log_sigmoid(bias.numpy()) / 16, rtol=RELATIVE["float64"])

    def test_config_gives_heads_normaliser_and_floor(self, read_model: Read) -> None:
        bias = random(8)
        config = {"num_heads": 2, "num_kv_heads": None, "gate_logit_normalizer": 4, "clamp_min": -0.2}
        (recurrence,) = read_model({"model.layers.0.attn.gk_proj.1.bias": bias}, config)
        expected = np.maximum(log_sigmoid(bias.numpy()) / 4, -0.2).reshape(2, 4)
        np.testing.assert_allclose(decay(recurrence), expected, rtol=RELATIVE["float64"])

    def test_the_model_of_fla_uses_16_whatever_its_config_says(self, read_model: Read) -> None:
        bias = random(8)
        config = {"model_type": "gla", "gate_logit_normalizer": 4}
        (recurrence,) = read_model({"model.layers.0.attn.gk_proj.1.bias": bias}, config)
        np.testing.assert_allclose(decay(recurrence)[:, 0], log_sigmoid(bias.numpy()) / 16, rtol=RELATIVE["float64"])
        assert [a.source for a in recurrence.assumptions] == ["file"]
        assert any("which fla's model ignores" in note for note in recurrence.notes)

    def test_normaliser_can_be_any_number_the_user_says(self, read_model: Read) -> None:
        bias = random(8)
        (recurrence,) = read_model({"layers.0.attn.gk_proj.1.bias": bias}, gate_logit_normalizer="2.5")
        np.testing.assert_allclose(decay(recurrence)[:, 0], log_sigmoid(bias.numpy()) / 2.5, rtol=RELATIVE["float64"])

    def test_simple_variant_has_one_gate_per_head(self, read_model: Read) -> None:
        bias = random(4)
        state = {"layers.0.attn.gk_proj.bias": bias, "layers.0.attn.gk_proj.weight": random(4, 8)}
        (recurrence,) = read_model(state, {"num_heads": 4})
        assert recurrence.log_eigenvalues.shape == (4, 1)
        np.testing.assert_allclose(decay(recurrence)[:, 0], log_sigmoid(bias.numpy()) / 16, rtol=RELATIVE["float64"])

    def test_slot_attention_is_read_only_where_config_says_so(self, read_model: Read) -> None:
        state = {f"model.layers.0.attn.{name}_proj.weight": random(8, 8) for name in "qkvf"}
        (recurrence,) = read_model(state, {"model_type": "gsa", "num_heads": 2})
        assert recurrence.log_eigenvalues.shape == (2, 4)
        np.testing.assert_allclose(decay(recurrence), -math.log(2) / 8, rtol=RELATIVE["float64"])
        assert "whatever the weights" in recurrence.notes[0]


class TestHGRN:
    def model(self, *extra: str) -> dict[str, torch.Tensor]:
        names = ("f_proj", "i_proj", *extra)
        state = {f"model.layers.{i}.attn.{name}.weight": random(6, 6) for i in range(3) for name in names}
        norms = {f"model.layers.{i}.attn.g_norm.weight": random(6) for i in range(3)}
        return {"model.lower_bounds": 2 * random(3, 6), **norms, **state}

    @pytest.mark.parametrize("extra", [(), ("q_proj",)])
    def test_decay_at_zero_input_lies_half_way_above_the_layers_lower_bound(
        self, extra: tuple[str, ...], read_model: Read
    ) -> None:
        state = self.model(*extra)
        share = np.exp(state["model.lower_bounds"].numpy())
        share /= share.sum(0)
        recurrences = read_model(state)
        assert len(recurrences) == 3
        for layer, recurrence in enumerate(recurrences):
            bound = share.cumsum(0)[layer] - share[0]
            expected = np.log(bound + (1 - bound) / 2)
            np.testing.assert_allclose(decay(recurrence)[:, 0], expected, rtol=RELATIVE["float64"])
            assert recurrence.operating_point == "zero input, where the gate is 1/2"

    @pytest.mark.parametrize("extra", [(), ("q_proj",)])
    def test_a_norm_without_a_weight_is_known_by_the_configuration(
        self, extra: tuple[str, ...], write_model: Write
    ) -> None:
        state = {name: value for name, value in self.model(*extra).items() if not name.endswith("g_norm.weight")}
        kind = {"model_type": "hgrn2" if extra else "hgrn"}
        found = extract_recurrences(write_model(state, kind, name="known"))
        full = extract_recurrences(write_model(self.model(*extra), kind, name="full"))
        assert [recurrence.family for recurrence in found] == ["hgrn"] * 3
        for one, other in zip(found, full, strict=True):
            assert one.log_eigenvalues.shape == other.log_eigenvalues.shape
        # An LSTM written as projections without a bias has the same names, and no norm.
        with pytest.raises(UnknownFamilyError):
            extract_recurrences(write_model(state, name="unknown"))

    def test_later_layers_remember_longer(self, read_model: Read) -> None:
        first, second, third = (r.rate for r in read_model(self.model()))
        assert (first > second).all()
        assert (second > third).all()
        np.testing.assert_allclose(first.numpy(), math.log(2), rtol=RELATIVE["float64"])

    def test_a_bound_within_1e_12_of_one_keeps_its_digits(self, read_model: Read) -> None:
        state = self.model()
        raw = state["model.lower_bounds"].zero_()
        raw[2] = 30.0  # 1 − γ of the last layer is the first layer's share
        last = read_model(state)[-1]
        expected = -math.log1p(-1 / (2 + math.exp(30.0)) / 2)
        np.testing.assert_allclose(last.rate.numpy(), expected, rtol=RELATIVE["float64"])

    def test_hgrn2_is_laid_out_by_head_where_config_gives_its_size(self, read_model: Read) -> None:
        recurrence = read_model(self.model("q_proj"), {"expand_ratio": 3})[0]
        assert recurrence.log_eigenvalues.shape == (2, 3)

    def test_without_bounds_the_report_says_that_the_weights_tell_nothing(self, read_model: Read) -> None:
        state = self.model()
        del state["model.lower_bounds"]
        recurrence = read_model(state, {"use_lower_bound": False})[0]
        np.testing.assert_allclose(recurrence.rate.numpy(), math.log(2), rtol=RELATIVE["float64"])
        assert "whatever the weights" in recurrence.notes[0]

    def test_bounds_that_config_promises_and_the_file_lacks_are_named(self, read_model: Read) -> None:
        state = self.model()
        del state["model.lower_bounds"]
        with pytest.raises(LayerError, match="lower_bounds tensor is missing"):
            read_model(state, {"use_lower_bound": True})


class TestFixedDecay:
    def test_retention_decay_is_read_as_stored(self, read_model: Read) -> None:
        gamma = 1 - 2.0 ** (-5 - torch.arange(8, dtype=torch.float64))
        state = {"decoder.retnet_rel_pos.decay": gamma.log(), "decoder.retnet_rel_pos.angle": random(16)}
        (recurrence,) = read_model(state)
        assert (recurrence.family, recurrence.time_invariant) == ("retention", True)
        expected = [math.log1p(-(2.0 ** (-5 - head))) for head in range(8)]
        np.testing.assert_allclose(decay(recurrence)[:, 0], expected, rtol=RELATIVE["float64"])

    def test_a_decay_beside_an_angle_elsewhere_is_not_retention(self, read_model: Read) -> None:
        state = {"decoder.robot.decay": random(8), "decoder.robot.angle": random(8), "x.to_hidden_and_gate.weight": random(4, 2)}  # fmt: skip # noqa: E501
        assert [r.family for r in read_model(state)] == ["min_gru"]

    def test_lightning_attention_decays_by_its_slope(self, read_model: Read) -> None:
        heads, layers = 4, 3
        state, expected = {}, []
        for layer in range(layers):
            factor = 1 - layer / (layers - 1 + 1e-5) + 1e-5
            slope = [2 ** (-8 * (head + 1) / heads) * factor for head in range(heads)]
            state[f"model.layers.{layer}.self_attn.slope_rate"] = torch.tensor(slope, dtype=torch.float64)[
                :, None, None
            ]
            state[f"model.layers.{layer}.self_attn.key_decay"] = random(heads, 5, 1)
            expected.append(slope)
        for recurrence, slope in zip(read_model(state), expected, strict=True):
            assert (recurrence.family, recurrence.time_invariant) == ("lightning_attention", True)
            np.testing.assert_allclose(-decay(recurrence)[:, 0], slope, rtol=RELATIVE["float64"])

    @pytest.mark.parametrize("heads", [8, 6])
    def test_slopes_that_are_not_stored_are_those_of_the_released_code(self, heads: int, read_model: Read) -> None:
        def alibi(n: int) -> list[float]:
            if n & (n - 1) == 0:
                ratio = 2 ** (-(2 ** -(math.log2(n) - 3)))
                return [ratio ** (head + 1) for head in range(n)]
            below = 2 ** math.floor(math.log2(n))
            return alibi(below) + alibi(2 * below)[0::2][: n - below]

        config = {"model_type": "minimax_text_01", "num_attention_heads": heads, "num_hidden_layers": 8}
        names = {"qkv_proj.weight": (24, 8), "output_gate.weight": (8, 8), "norm.weight": (8,)}
        state = {f"model.layers.5.self_attn.{name}": random(*shape) for name, shape in names.items()}
        (recurrence,) = read_model(state, config)
        expected = np.array(alibi(heads)) * (1 - 5 / 7 + 1e-5)
        np.testing.assert_allclose(-decay(recurrence)[:, 0], expected, rtol=RELATIVE["float64"])
        assert "not in the file" in recurrence.notes[0]

    def test_slopes_without_a_number_of_heads_are_asked_for(self, read_model: Read) -> None:
        names = {"qkv_proj.weight": (24, 8), "output_gate.weight": (8, 8), "norm.weight": (8,)}
        state = {f"model.layers.5.self_attn.{name}": random(*shape) for name, shape in names.items()}
        with pytest.raises(LayerError, match=r"config\.json does not give them"):
            read_model(state, {"model_type": "minimax_m1"})


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [("gate_logit_normalizer", "0", "gk_proj.1.bias"), ("gate_soft_cap", "-15", "mlstm_layer.fgate_preact.bias")],
)
def test_a_setting_that_makes_no_sense_is_refused(option: str, value: str, name: str, read_model: Read) -> None:
    state = {f"layers.0.{name}": random(4), "layers.0.mlstm_layer.igate_preact.bias": random(4)}
    with pytest.raises(LayerError, match=option):
        read_model(state, **{option: value})


class TestMinGRU:
    @pytest.mark.parametrize(("name", "parts"), [("to_hidden_and_gate", 2), ("to_hidden_and_f_i_gate", 3)])
    def test_decay_at_zero_input_is_one_half(self, name: str, parts: int, read_model: Read) -> None:
        (recurrence,) = read_model({f"layers.0.{name}.weight": random(5 * parts, 4)})
        assert recurrence.log_eigenvalues.shape == (5, 1)
        # minLSTM's pair of gates gives the same: f/(f + i) with f = i = 1/2.
        np.testing.assert_allclose(decay(recurrence), math.log(0.5), rtol=RELATIVE["float64"])
        assert not recurrence.time_invariant

    def test_rows_that_do_not_split_are_named(self, read_model: Read) -> None:
        with pytest.raises(LayerError, match=r"to_hidden_and_f_i_gate\.weight has shape \(7, 4\)"):
            read_model({"layers.0.to_hidden_and_f_i_gate.weight": random(7, 4)})
