"""`ssmdiag kernel`: the numbers in the file are the kernel, the screen says what was fitted and over which lags."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ssmdiag import extract_recurrences
from ssmdiag.assessment.memory import assess_memory
from ssmdiag.cli import main
from ssmdiag.cli.options import MAX_LENGTH
from ssmdiag.kernel.powers import MAX_LAG

Run = Callable[..., tuple[int, str, str]]
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
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
    assert out.startswith("OK  decays exponentially over lags 0 to ")
    assert "\ns4d.safetensors  s4_layers.0, channel 0  kernel, 2,000 lags\n" in out
    assert "Forgets exponentially, half gone every 50 steps" in out
    # E(τ)/E(0) = 2^(−2τ/50) ≤ 0.01 first at τ = 167.
    assert "99 % of its energy has passed after 167 steps" in " ".join(out.split())
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
        metadata = json.loads(str(file["metadata"]))
    assert metadata["source"] == "s4d.safetensors"
    assert json.loads(metadata["layers"])["s4_layers.1.kernel"]["channel"] == 2


def test_a_selective_layer_gives_its_retention_and_says_so(run: Run, tmp_path: Path) -> None:
    state = {"layers.0.A_log": torch.zeros(2, 1), "layers.0.dt_proj.bias": torch.full((2,), -3.0)}
    save_file(state, tmp_path / "m.safetensors")
    code, out, err = run("kernel", tmp_path / "m.safetensors", "--length", 1000)
    assert code == 0, err
    assert "retention with the gates at rest" in out.replace("\n", " ")
    assert "half gone every 14.3 steps" in out.replace("\n", " ")


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--layer", "7"], "there is no such layer"),
        (["--channel", "9"], "has channels 0 to 3, not 9"),
        (["--channel", "1", "--output", "k.npz"], "expected: --layer as well"),
        (["--layer", "s4_layers"], "2 layers have a path that begins with it"),
        (["--layer", "0 (backward)"], "no such layer or branch"),
        (["--length", str(2**40 + 1)], "memory is known up to 2**40"),
        (["--length", "99999999999", "--output", "k.npz"], "next: --memory-limit GIB allows more; --channel"),
        (["--memory-limit", "0.001", "--length", "99999", "--output", "k.npz"], "0.0 are allowed"),
        *(
            (["--memory-limit", limit, "--output", "k.npz"], "--memory-limit: ")
            for limit in ("inf", "nan", "1e300", "1e400", "0", "-1")
        ),
        (["--output", "k.txt"], "unknown ending"),
        (["--output", "nowhere/k.npz"], "cannot be written"),
        (["--output", "s4d.safetensors/k.npz"], "cannot be written"),
    ],
)
def test_bad_requests_are_sentences(run: Run, s4d: Path, arguments: list[str], says: str, tmp_path: Path) -> None:
    arguments = [str(tmp_path / a) if "k." in a else a for a in arguments]
    code, _, err = run("kernel", s4d, "--length", 50, *arguments)
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["s4d.safetensors"]


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


def growing(tmp_path: Path) -> list[object]:
    """A layer of four channels, one of which grows by 10 % a step and one of which is NaN."""
    rate = torch.tensor([[0.5], [-0.1], [0.2], [float("nan")]])
    save_file({"x.rnn.rate": rate, "x.rnn.b": torch.ones(4, 1)}, tmp_path / "bad.safetensors")
    (tmp_path / "map.toml").write_text(
        '[[layer]]\nname = "x"\nweight = "*.rnn.rate"\naxes = "channel mode"\nmap = "none"\ndomain = "rate"\n'
    )
    return [tmp_path / "bad.safetensors", "--map", tmp_path / "map.toml"]


def test_the_file_and_the_answer_say_which_kernels_are_no_numbers(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "k.safetensors"
    code, out, err = run("kernel", *growing(tmp_path), "--length", 2000, "-o", target)
    assert (code, err) == (0, "")
    said = " ".join(out.split())
    assert "1 channel of x.rnn: a growing mode reaches the output: the kernel has no bound" in said
    assert "1 channel of x.rnn: weights that are NaN or infinite: the kernel is not a number" in said
    with safe_open(target, "pt") as file:
        (name,) = file.keys()
        lost = int((~file.get_tensor(name).isfinite()).sum())
        about = json.loads(file.metadata()["layers"])[name]
        assert "retention: share of a state" in file.metadata()["units"]
    # e^(0.1 t) passes float32's 3.4e38 at lag 888.
    assert lost == 2000 + 2000 - 888
    assert f"{lost:,} values of x.rnn: written as NaN or infinity" in said
    assert about["status"] == {"grows": 1, "not_finite": 1}
    assert about["not_finite"] == lost
    assert about["units"] == "share of a state that is left, the mean of |λ̄|^t over modes"


def test_a_context_that_nothing_gave_is_said_of_the_file_too(run: Run, s4d: Path, tmp_path: Path) -> None:
    out = run("kernel", s4d, "-o", tmp_path / "k.npz")[1]
    assert "2 kernels of 4,096 lags (no context is given: --length sets it), 0.1 MB" in out
    assert "no context" not in run("kernel", s4d, "--length", 9, "-o", tmp_path / "l.npz")[1]


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("inspect", "--length"),
        ("check", "--length"),
        ("kernel", "--length"),
        ("compare", "--length"),
        ("capacity", "--length"),
        ("capacity", "--for-length"),
    ],
)
def test_a_length_past_the_largest_lag_is_a_sentence(run: Run, s4d: Path, command: str, option: str) -> None:
    code, _, err = run(command, s4d, *([s4d] if command == "compare" else []), option, 2**40 + 1)
    assert code == 2
    assert "1,099,511,627,777 steps are too many" in err
    assert "Traceback" not in err


def test_the_largest_length_is_the_largest_lag(run: Run, s4d: Path) -> None:
    assert MAX_LENGTH == MAX_LAG
    assert run("kernel", s4d, "--length", 2**40)[0] == 0


def test_the_report_gives_every_residual_and_parameters_with_their_errors(run: Run, s4d: Path) -> None:
    said = " ".join(
        run("kernel", "--full", s4d, "--layer", 0, "--channel", 0, "--length", 2000, "--no-plots")[1].split()
    )
    assert re.search(r"rms residuals: flat \S+ dB, exponential <0.001 dB, polynomial \S+ dB, truncated \S+ dB", said)
    assert re.search(r"exponential: rate 0\.013863 ± \S+ per step \(standard errors\)", said)
    assert "rms residuals" not in run("kernel", s4d, "--length", 2000, "--quiet")[1]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("columns", [60, 80, 140])
def test_no_line_is_wider_than_the_terminal(run: Run, s4d: Path, tmp_path: Path, columns: int) -> None:
    assert max(map(len, run("kernel", s4d, columns=columns)[1].splitlines())) <= columns
    bad = growing(tmp_path)
    assert max(map(len, run("kernel", *bad, columns=columns)[1].splitlines())) <= columns


def test_json_gives_every_channel_in_columns(run: Run, s4d: Path) -> None:
    text = run("kernel", s4d, "--layer", 0, "--length", 2000, "-f", "json")[1]
    assert len(text.splitlines()) < 95  # a line for each list
    columns = json.loads(text)["channels"]
    memory = assess_memory(extract_recurrences(s4d)[0], 2000)
    for index in range(4):
        decay = memory.channels.channel(index)
        assert columns["law"][index] == decay.law.value
        assert columns["status"][index] == decay.status.name.lower()
        assert columns["window"][index] == (decay.window and list(decay.window))
        for name in ("exponent", "exponent_error", "rate", "rate_error", "offset", "offset_error"):
            assert columns[name][index] == getattr(decay, name), name
    assert columns["law"][0] == "exponential"
    assert columns["horizon"] == memory.horizon.lags.tolist()
    assert columns["horizon_status"] == ["known"] * 4


@pytest.mark.slow
def test_a_layer_is_found_without_reading_the_others(run: Run, s4d: Path, tmp_path: Path) -> None:
    state = load_file(s4d)
    state["s4_layers.1.kernel.C"] = torch.zeros(5, 3, 2)
    broken = tmp_path / "broken.safetensors"
    save_file(state, broken)
    for name in ("0", "s4_layers.0", "00"):
        code, out, err = run("kernel", broken, "--layer", name, "--length", 50)
        assert (code, err) == (0, "")
        assert "s4_layers.0" in out
    assert run("kernel", broken, "--length", 50)[0] == 2, "the first of two, of which one cannot be read"
    assert run("kernel", broken, "--layer", "1", "--length", 50)[0] == 2
    assert run("capacity", broken, "--layer", "0", "--length", 50, "--no-plots")[0] == 0
    assert run("capacity", broken, "--length", 50, "--no-plots")[0] == 2


def test_layers_that_cannot_be_read_are_left_out_of_the_file_and_named(run: Run, s4d: Path, tmp_path: Path) -> None:
    state = load_file(s4d)
    state["s4_layers.0.kernel.C"] = torch.zeros(5, 3, 2)
    broken, target = tmp_path / "broken.safetensors", tmp_path / "k.safetensors"
    save_file(state, broken)
    code, out, err = run("kernel", broken, "--length", 50, "-o", target)
    assert code == 2
    assert "1 kernel of 50 lags" in out
    assert "not written: s4_layers.0" in err
    with safe_open(target, "pt") as file:
        assert list(file.keys()) == ["s4_layers.1.kernel"]
    state["s4_layers.1.kernel.C"] = torch.zeros(5, 3, 2)
    save_file(state, broken)
    assert run("kernel", broken, "--length", 50, "-o", tmp_path / "none.npz")[0] == 2
    assert not (tmp_path / "none.npz").exists()


@pytest.fixture
def s5(tmp_path: Path) -> Path:
    """One bidirectional layer: a state of three modes, two inputs and two outputs."""
    generator = torch.Generator().manual_seed(1)
    local = {
        "Lambda_re": -torch.rand(3, generator=generator),
        "Lambda_im": torch.rand(3, generator=generator),
        "log_step": torch.full((3, 1), -3.0),
        "B": torch.randn(3, 2, 2, generator=generator),
        "C1": torch.randn(2, 3, 2, generator=generator),
        "C2": torch.randn(2, 3, 2, generator=generator),
    }
    path = tmp_path / "s5.safetensors"
    save_file({f"params.encoder.layers_0.seq.{name}": value for name, value in local.items()}, path)
    return path


def test_a_layer_with_two_directions_goes_by_its_number_and_by_each_branch(run: Run, s5: Path, tmp_path: Path) -> None:
    path = "params.encoder.layers_0.seq"
    for name, branch in (("0", "forward"), ("0 (backward)", "backward"), ("params.encoder (backward)", "backward")):
        out = run("kernel", s5, "--layer", name, "--length", 100, "--no-plots")[1]
        assert f"\ns5.safetensors  {path} ({branch})" in out
    said = " ".join(run("kernel", s5, "--length", 100, "--no-plots")[1].split())
    assert f'also in this layer: {path} (backward); --layer "{path} (backward)" shows it' in said
    data = json.loads(run("kernel", s5, "--length", 100, "-f", "json")[1])
    assert data["branches"] == [f"{path} (forward)", f"{path} (backward)"]
    run("kernel", s5, "--layer", "0", "--length", 10, "-o", tmp_path / "both.npz")
    with np.load(tmp_path / "both.npz") as file:
        assert {name: array.shape for name, array in file.items() if name != "metadata"} == {
            f"{path} (forward).kernel": (2, 2, 10),
            f"{path} (backward).kernel": (2, 2, 10),
        }


def test_a_report_of_one_layer_says_that_there_are_others(run: Run, s4d: Path) -> None:
    assert "the first of 2 layers; --layer shows another" in run("kernel", s4d, "--length", 50)[1]
    assert "the first of" not in run("kernel", s4d, "--length", 50, "--layer", 1)[1]


def test_the_first_line_says_law_or_horizon_and_json_says_the_same(run: Run) -> None:
    path = EXAMPLES / "s4d-digits"
    code, out, _ = run("kernel", path)
    assert code == 0
    said = " ".join(out.split())
    assert said.startswith(
        "OK layer 0, the first of 3 recurrent layers: 99 % of its energy has passed after 331 steps in the median "
        "channel, 3.5k at most; no one"
    )
    assert "newest of 7: step-02000.safetensors; `ssmdiag compare" in said
    assert len(out.splitlines()) <= 22
    data = json.loads(run("kernel", path, "-f", "json")[1])
    assert said.startswith(f"{data['status'].upper()} {data['answer']} ")
    assert data["checkpoint"]["chosen"].startswith("newest of 7: ")
    full = run("kernel", path, "--full")[1]
    assert "rms residuals" in full
    assert "rms residuals" not in out
