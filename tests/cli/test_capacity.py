"""`ssmdiag capacity`: what it says of layers that cannot be read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

Run = Callable[..., tuple[int, str, str]]


def kernel(path: str, channels: int = 2, modes: int = 3) -> dict[str, torch.Tensor]:
    return {
        f"{path}.kernel.log_A_real": torch.zeros(channels, modes),
        f"{path}.kernel.A_imag": torch.ones(channels, modes).cumsum(1),
        f"{path}.kernel.C": torch.ones(channels, modes, 2),
        f"{path}.kernel.log_dt": torch.full((channels,), -4.0),
    }


def test_a_layer_that_cannot_be_read_is_named_and_the_others_are_told(
    run: Run, write_model: Callable[..., Path]
) -> None:
    state = {**kernel("layers.0"), **kernel("layers.1"), **kernel("layers.2")}
    broken = {**state, "layers.1.kernel.log_A_real": torch.zeros(2, 3, dtype=torch.int64)}
    code, output, errors = run("capacity", write_model(state, name="sound"), "--format", "json")
    assert (code, errors) == (0, "")
    assert len(json.loads(output)["layers"]) == 3
    code, output, errors = run("capacity", write_model(broken, name="broken"), "--format", "json")
    assert code == 2
    assert [layer["name"] for layer in json.loads(output)["layers"]] == ["layers.0", "layers.2"]
    assert "not read: " in errors
    assert "layers.1" in errors


def many_channels(write_model: Callable[..., Path]) -> Path:
    """Return a layer of 96 channels, of which 64 are looked at unless all are asked for."""
    state = kernel("layers.0", channels=96)
    state["layers.0.kernel.log_dt"] = torch.linspace(-7, -2, 96)
    state["layers.0.kernel.C"] = torch.ones(96, 3, 2)
    return write_model(state)


def asked(run: Run, *arguments: object) -> dict[str, Any]:
    code, output, errors = run("capacity", *arguments, "--format", "json")
    assert (code, errors) == (0, "")
    return json.loads(output)["layers"][0]


@pytest.mark.slow
def test_the_input_and_the_scale_of_an_int8_state_can_be_said(run: Run, write_model: Callable[..., Path]) -> None:
    path = many_channels(write_model)

    def left(*options: object) -> float:
        return asked(run, path, *options)["capacity"]["effective_modes"]

    assert left("--state-dtype", "bf16", "--input-mean", 3) < left("--state-dtype", "bf16")
    assert left("--state-dtype", "fp16", "--input-scale", 1e-7) < left("--state-dtype", "fp16", "--input-scale", 1)
    shared = [left("--state-dtype", "int8", "--int8-scale", owner) for owner in ("state", "channel", "layer")]
    assert shared == sorted(shared, reverse=True)
    assert shared[0] > shared[2]
    said = asked(run, path, "--state-dtype", "int8", "--int8-scale", "layer", "--input-mean", 2)["capacity"]["assumes"]
    assert "mean 2 standard deviations" in said
    assert "one fixed scale per layer" in said
    code, output, _ = run("capacity", path, "--state-dtype", "int8", "--int8-scale", "layer")
    assert code == 0
    assert "scale per layer" in " ".join(output.split())


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "options",
    [
        ("--input-mean", "nan"),
        ("--input-mean", "inf"),
        ("--input-mean", "1e300"),
        ("--int8-scale", "layer"),
        ("--input-mean", "much"),
        ("--input-scale", "0"),
        ("--input-scale", "-1"),
        ("--input-scale", "nan"),
        ("--input-scale", "inf"),
        ("--int8-scale", "model"),
    ],
    ids="=".join,
)
def test_assumptions_that_are_none_are_refused(
    run: Run, write_model: Callable[..., Path], options: tuple[str, str]
) -> None:
    code, output, errors = run("capacity", many_channels(write_model), *options)
    assert (code, output) == (2, "")
    assert options[0] in errors or "the input's" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_layers_int8_scale_is_that_of_all_its_channels(run: Run, write_model: Callable[..., Path]) -> None:
    path = many_channels(write_model)
    options = ("--layer", "0", "--state-dtype", "int8", "--int8-scale", "layer")
    some, every = asked(run, path, *options), asked(run, path, *options, "--every-channel")
    assert (some["capacity"]["channels"], every["capacity"]["channels"]) == (64, 96)
    for layer in (some, every):
        assert layer["step_factors"]["1"]["over_channels"] == layer["capacity"]["over_channels"]
    ends = [
        [layer["capacity"]["over_channels"]["effective_modes"][end] for end in ("min", "max")]
        for layer in (some, every)
    ]
    assert ends[0] == pytest.approx(ends[1], rel=1e-9)


EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_first_line_says_how_far_back_inputs_are_rebuilt_and_json_says_the_same(run: Run) -> None:
    path = EXAMPLES / "s4d-digits" / "step-02000.safetensors"
    code, output, _ = run("capacity", path)
    assert code == 0
    said = " ".join(output.split())
    assert said.startswith(
        "OK 15 of 32 channels of layer 0 rebuild half or more of the input, 42 steps back in the median, "
    )
    assert "59 steps back at best; of a channel's 40 modes float32 keeps 40, bf16 40 (median layer)" in said
    assert len(output.splitlines()) <= 20
    data = json.loads(run("capacity", path, "--format", "json")[1])
    assert said.startswith(f"{data['status'].upper()} {data['answer']} ")
    full = run("capacity", path, "--full")[1]
    assert "beside its family's initialisations" in full
    assert "assumed: white input" in full


def test_the_folder_of_a_run_stands_for_its_newest_checkpoint(run: Run) -> None:
    code, output, _ = run("capacity", EXAMPLES / "lru-digits", "--no-plots")
    assert code == 0
    assert "newest of 7: step-02000.safetensors; `ssmdiag compare" in " ".join(output.split())
    data = json.loads(run("capacity", EXAMPLES / "lru-digits", "--format", "json")[1])
    assert data["checkpoint"]["path"].endswith("lru-digits/step-02000.safetensors")
    assert data["checkpoint"]["chosen"].startswith("newest of 7: ")


def test_no_digit_is_cut_off_on_a_narrow_screen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    output = run("capacity", EXAMPLES / "s4d-digits" / "step-02000.safetensors", "--full", "--no-plots")[1]
    assert "…" not in output
    assert max(map(len, output.splitlines())) <= 40
    assert {"0.769", "0.626", "0.642", "18.4", "S4D-LegS"} <= set(output.split())


def test_layers_of_one_mode_have_no_capacity_said_of_them(run: Run, write_model: Callable[..., Path]) -> None:
    """A channel of one real mode is a running average: Σ MF = 1, spread over the time it lasts."""
    state = {"layers.0.mamba.A_log": torch.zeros(4, 1), "layers.0.mamba.dt_proj.bias": torch.full((4,), -4.0)}
    state |= {"layers.0.mamba.dt_proj.weight": torch.ones(4, 2), "layers.0.mamba.x_proj.weight": torch.ones(4, 4)}
    code, output, _ = run("capacity", write_model(state), "--no-plots")
    assert code == 0
    said = " ".join(output.split())
    assert said.startswith("OK each channel has one mode with the gates at rest (inputs can change this), a running")
    assert "keeps" not in said


def test_of_many_layers_a_few_are_shown(run: Run, write_model: Callable[..., Path]) -> None:
    state = {name: tensor for k in range(7) for name, tensor in kernel(f"layers.{k}").items()}
    path = write_model(state)
    short, full = (run("capacity", path, "--no-plots", *flags)[1] for flags in ([], ["--full"]))
    assert [len(re.findall(r"^\d +\d", text, re.MULTILINE)) for text in (short, full)] == [3, 7]
    assert "7 layers, 3 of them shown (--full)" in " ".join(short.split())


def test_a_layer_that_never_decays_has_a_capacity_that_is_not_known(tmp_path: Path, run: Run) -> None:
    state = {f"model.layers.0.attn.{name}_proj.weight": torch.ones(8, 8) for name in "qkvo"}
    state |= {"model.layers.0.attn.b_proj.weight": torch.ones(2, 8), "model.layers.0.attn.o_norm.weight": torch.ones(4)}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "delta_net", "num_heads": 2}))
    code, out, _ = run("capacity", tmp_path)
    assert code == 0
    assert out.startswith("UNDETERMINED  no layer's capacity is known: none of its modes decays\n")
    assert "not even" not in out


@pytest.mark.parametrize(
    ("first", "second", "status", "answer"),
    [
        (0.5, -0.5, "PROBLEM", "or a failed self-test; each other channel has one mode, a running average"),
        (
            0.0,
            -0.5,
            "UNDETERMINED",
            "or a failed self-test; no layer's capacity is known: none of the other modes decays",
        ),
        (math.nan, -0.5, "UNDETERMINED", "no layer's capacity is known: its modes are NaN, growing, or beyond float64"),
        (0.0, 0.5, "OK", "each channel has one mode, a running average of its input"),
    ],
)
def test_a_layer_of_which_nothing_is_known_is_no_layer_of_several_modes(
    first: float, second: float, status: str, answer: str, run: Run, write_model: Callable[..., Path]
) -> None:
    """Nor is one whose modes never decay a layer of one mode, which is a running average."""
    state = {f"layers.{k}.attn.slope_rate": torch.full((2, 1, 1), rate) for k, rate in enumerate((first, second))}
    _, out, _ = run("capacity", write_model(state), "--no-plots")
    assert out.startswith(f"{status}  ")
    assert answer in " ".join(out.split())
    assert ("1 layer of one mode" in " ".join(out.split())) == (status in ("PROBLEM", "OK"))
