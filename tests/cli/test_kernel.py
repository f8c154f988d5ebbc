"""`ssmdiag kernel`: the numbers in the file are the kernel, the screen says what was fitted and over which lags."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ssmdiag import extract_recurrences
from ssmdiag.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "argv", ["ssmdiag", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def s4d(tmp_path: Path) -> Path:
    """Two layers; channel 0 of the first is one real pole that halves every 50 steps."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for i in range(2):
        state |= {
            f"s4_layers.{i}.kernel.log_A_real": torch.randn(4, 3, generator=generator),
            f"s4_layers.{i}.kernel.A_imag": 3 * torch.rand(4, 3, generator=generator),
            f"s4_layers.{i}.kernel.log_dt": torch.full((4,), -3.0),
            f"s4_layers.{i}.kernel.C": torch.randn(4, 3, 2, generator=generator),
        }
    first = "s4_layers.0.kernel"
    state[f"{first}.log_dt"][0] = 0.0
    state[f"{first}.log_A_real"][0] = torch.tensor(np.log(np.log(2) / 50))
    state[f"{first}.A_imag"][0] = 0.0
    state[f"{first}.C"][0] = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    path = tmp_path / "s4d.safetensors"
    save_file(state, path)
    return path


def test_the_law_of_a_single_pole_is_its_half_life(run: Run, s4d: Path) -> None:
    code, out, err = run("kernel", s4d, "--layer", 0, "--channel", 0, "--length", 2000)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "s4d.safetensors  s4_layers.0, channel 0  kernel, 2,000 lags"
    assert "Forgets exponentially, half gone every 50 steps" in out
    # E(τ)/E(0) = 2^(−2τ/50) ≤ 0.01 first at τ = 167.
    assert "99 % of its energy has passed after 167 steps" in out
    assert max(map(len, out.splitlines())) <= 80


def test_json_gives_law_horizon_and_window(run: Run, s4d: Path) -> None:
    data = json.loads(run("kernel", s4d, "--channel", 0, "--length", 2000, "-f", "json")[1])
    assert data["decay"]["layer"]["law"] == "exponential"
    assert data["decay"]["layer"]["rate"] == pytest.approx(np.log(2) / 50, rel=1e-3)
    assert data["decay"]["layer"]["window"][0] == 0
    assert data["horizon"] == [167.0]


def test_the_file_holds_the_kernel_of_every_layer(run: Run, s4d: Path, tmp_path: Path) -> None:
    target = tmp_path / "k.safetensors"
    code, out, err = run("kernel", s4d, "--length", 300, "--output", target)
    assert code == 0, err
    assert "2 kernels of 300 lags" in out
    lags = torch.arange(300)
    with safe_open(target, "pt") as file:
        about = json.loads(file.metadata()["layers"])
        for recurrence in extract_recurrences(s4d):
            name = f"{recurrence.layer}.kernel"
            weights = recurrence.output_matrix * recurrence.input_matrix
            modes = (recurrence.log_eigenvalues[None, :, :, None] * lags).exp()
            expected = 2 * torch.einsum("chn,chnt->cht", weights, modes.expand(1, -1, -1, -1)).real
            torch.testing.assert_close(
                file.get_tensor(name).double(), expected, rtol=0, atol=2e-7 * expected.abs().max()
            )
            assert about[name]["family"] == "s4d"
            assert len(about[name]["sha256"]) == 64
            assert about[name]["step"]["min"] == pytest.approx(float(recurrence.step.min()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.safetensors", "s4d.safetensors"]


def test_npz_holds_the_same_and_one_channel_can_be_chosen(run: Run, s4d: Path, tmp_path: Path) -> None:
    target = tmp_path / "k.npz"
    assert run("kernel", s4d, "--layer", 1, "--channel", 2, "--length", 10, "-o", target)[0] == 0
    with np.load(target) as file:
        assert file["s4_layers.1.kernel"].shape == (1, 1, 10)
        assert json.loads(str(file["metadata"]))["source"] == "s4d.safetensors"


def test_a_selective_layer_gives_its_retention_and_says_so(run: Run, tmp_path: Path) -> None:
    state = {"layers.0.A_log": torch.zeros(2, 1), "layers.0.dt_proj.bias": torch.full((2,), -3.0)}
    save_file(state, tmp_path / "m.safetensors")
    code, out, err = run("kernel", tmp_path / "m.safetensors", "--length", 1000)
    assert code == 0, err
    assert "retention at the nominal point" in out.replace("\n", " ")
    assert "half gone every 14.3 steps" in out.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--layer", "7"], "there is no such layer"),
        (["--channel", "9"], "has channels 0 to 3, not 9"),
        (["--output", "k.txt"], "unknown ending"),
        (["--output", "nowhere/k.npz"], "cannot be written"),
    ],
)
def test_bad_requests_are_sentences(run: Run, s4d: Path, arguments: list[str], says: str, tmp_path: Path) -> None:
    arguments = [str(tmp_path / a) if "k." in a else a for a in arguments]
    code, _, err = run("kernel", s4d, "--length", 50, *arguments)
    assert code == 2
    assert says in err
    assert "Traceback" not in err


def test_an_existing_file_is_never_written_over(run: Run, s4d: Path) -> None:
    before = s4d.read_bytes()
    code, _, err = run("kernel", s4d, "--length", 50, "--output", s4d)
    assert code == 2
    assert "exists already" in err
    assert s4d.read_bytes() == before


@pytest.mark.parametrize(("change", "says"), [(1.0, "grow"), (float("nan"), "not finite")])
def test_a_kernel_that_grows_or_is_nan_gets_a_sentence_and_no_number(
    run: Run, s4d: Path, tmp_path: Path, change: float, says: str
) -> None:
    path = tmp_path / "bad.safetensors"
    state = {"x.rnn.rate": torch.tensor([[-change]]), "x.rnn.b": torch.ones(1, 1)}
    save_file(state, path)
    (tmp_path / "map.toml").write_text(
        '[[layer]]\nname = "x"\nweight = "*.rnn.rate"\naxes = "channel mode"\nmap = "none"\ndomain = "rate"\n'
    )
    code, out, err = run("kernel", path, "--map", tmp_path / "map.toml", "--length", 100)
    assert code == 0, err
    assert says in out
    assert "half gone" not in out
