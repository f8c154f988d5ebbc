"""`ssmdiag compare`: exit codes, what stands in the first lines, formats, widths, and what goes wrong."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from safetensors.torch import load_file, save_file

from ssmdiag.cli import main
from tests.compare.test_comparison import EXAMPLES, STEPS, drifting, steady, write_run

Run = Callable[..., tuple[int, str, str]]
S4D = EXAMPLES / "s4d-digits"
LRU = EXAMPLES / "lru-digits"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["ssmdiag", "compare", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_a_drifting_run_is_answered_in_the_first_line_with_pace_and_projection(run: Run, tmp_path: Path) -> None:
    code, out, err = run(*write_run(tmp_path, STEPS, drifting), "--memory", "none")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("PROBLEM  layer 1 converges to the boundary: margin fell")
    assert "8 checkpoints, steps 0 to 7,000  Mamba-1, 3 layers  cpu" in out
    assert "halving every 69" in one_line(out)
    assert "in float32 its decay rounds to 1 at about step 1" in one_line(out)
    assert "other layers" not in out
    assert "layer a 1" in out


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("world", "fail_on", "expected"),
    [
        (drifting, "never", 0),
        (drifting, "converging", 1),
        (drifting, "crossing", 1),
        (steady, "converging", 0),
        (steady, "crossing", 0),
    ],
)
def test_fail_on_exits_one_for_a_run_that_converges_only(
    run: Run, tmp_path: Path, world: Callable[[int, str], torch.Tensor], fail_on: str, expected: int
) -> None:
    assert run(*write_run(tmp_path, STEPS, world), "--memory", "none", "--fail-on", fail_on)[0] == expected


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 80, 140, 160])
@pytest.mark.parametrize("directory", [S4D, LRU])
def test_no_line_is_wider_than_the_terminal(run: Run, directory: Path, columns: int) -> None:
    code, out, _ = run(*directory.glob("*.safetensors"), columns=columns)
    assert code == 0
    assert max(map(cell_len, out.splitlines())) <= columns
    assert "\x1b" not in out


@pytest.mark.slow
def test_without_plots_and_quiet_less_is_said(run: Run) -> None:
    paths = sorted(LRU.glob("*.safetensors"))
    whole, plain, quiet = (run(*paths, *flags)[1] for flags in ([], ["--no-plots"], ["-q"]))
    assert "┤" in whole
    assert "┤" not in plain
    assert "layer" in plain
    assert len(quiet.splitlines()) <= 2
    assert quiet.startswith("OK  no layer drifts any more; layer 2 moved most: margin fell 27 %")


@pytest.mark.slow
def test_ascii_terminals_get_ascii(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssmdiag.cli.terminal.unicode", lambda: False)
    for arguments in (
        sorted(LRU.glob("*.safetensors")),
        [S4D / "step-02000.safetensors", LRU / "step-02000.safetensors"],
        [S4D / "step-01500.safetensors", S4D / "step-02000.safetensors", "--strict"],
    ):
        assert run(*arguments)[1].isascii()


def refuse(token: str) -> None:
    raise AssertionError(token)


def test_json_of_a_run_holds_every_point_and_knows_no_nan(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(*write_run(tmp_path, STEPS, drifting), "-f", "json")
    data = json.loads(out, parse_constant=refuse)
    assert code == 0
    assert (data["schema_version"], data["comparison"], data["verdict"]) == (1, "run", "converging")
    assert (data["order"], data["unit"], data["seed"]) == ("stored", "step", None)
    layer = data["layers"][1]
    assert layer["verdict"] == "converging"
    assert [point["step"] for point in layer["points"]] == STEPS
    assert layer["slowest_mode"]["trend"]["log_rate_per_step"]["value"] == pytest.approx(-1e-3, rel=0.01)
    trend = layer["slowest_mode"]["trend"]
    assert max(trend[name] for name in ("p_rank", "p_random_walk", "p_correlated_steps")) < 0.05
    assert trend["p_first_slowest_modes"] is None or trend["p_first_slowest_modes"] < 0.05
    assert layer["learning_rate"] is layer["points"][0]["learning_rate"] is None
    ahead = [limit["projection"] for limit in layer["limits"] if limit["projection"]]
    assert all((one["unnamed"], one["not_before"]) == (None, None) and one["step"] > 7000 for one in ahead)
    assert {limit["name"] for limit in layer["limits"]} == {"bfloat16", "float16", "float32"}
    assert layer["points"][0]["share_moved"] is None
    assert layer["points"][0]["horizon"] is not None
    assert layer["points"][1]["horizon"] is None


def test_json_writes_infinity_as_a_string_and_what_is_unknown_as_null(run: Run, tmp_path: Path) -> None:
    def breaking(step: int, layer: str) -> torch.Tensor:
        return steady(step, layer) + (math.nan if step == 7000 and layer == "1" else 0.0)

    _, out, _ = run(*write_run(tmp_path, STEPS[-3:], breaking), "-f", "json", "--memory", "none")
    data = json.loads(out, parse_constant=refuse)
    last = data["layers"][1]["points"][-1]
    assert (last["rate"], last["margin"], last["slowest_time_constant"]) == (None, None, None)
    assert data["layers"][0]["slowest_mode"]["trend"]["log_rate_per_step"]["low"] is not None
    assert data["verdict"] == "not finite"


def test_two_checkpoints_of_one_model_show_a_change_and_claim_no_trend(run: Run) -> None:
    ends = (LRU / "step-00000.safetensors", LRU / "step-02000.safetensors")
    code, out, _ = run(*ends, "--memory", "none", "--no-plots")
    assert code == 0
    assert one_line(out).startswith(
        "UNDETERMINED 2 checkpoints cannot tell a trend, 5 or more can; changed most: layer 2,"
    )
    assert "margin fell 27 % (0.018 → 0.013)" in one_line(out)
    assert "95 %" not in out


@pytest.mark.slow
def test_two_models_say_what_one_has_and_the_other_lacks(run: Run) -> None:
    code, out, _ = run(S4D / "step-02000.safetensors", LRU / "step-02000.safetensors")
    assert code == 0
    said = (
        "DIFFERS b lacks time constants of 100 to 10k steps: 64 % of a's modes (layers 0-2), none of its own; a lacks"
    )
    assert one_line(out).startswith(said)
    assert "layers of a remember 4.4k steps, of b 120 steps" in one_line(out)
    data = json.loads(run(S4D / "step-02000.safetensors", LRU / "step-02000.safetensors", "-f", "json")[1])
    assert data["comparison"] == "models"
    assert [gap["lacking"] for gap in data["gaps"]] == ["b", "a"]
    assert sum(data["share_per_decade"]["a"]) == pytest.approx(1)
    assert data["a"]["layers"][0]["family"] == "s4d"


def test_a_proof_exits_zero_and_says_what_was_proven_and_what_was_not(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in load_file(S4D / "step-02000.safetensors").items()}, copy)
    code, out, err = run(S4D / "step-02000.safetensors", copy, "--strict", "--length", 64)
    assert (code, err) == (0, "")
    assert out.startswith("SAME  proven: the same memory in all 3 layers;")
    assert "every mode agree to the last bit" in one_line(out)
    assert "kernels of 3 layers at 17 lags from 0 to 64" in one_line(out)
    assert "not compared: all tensors outside the recurrence" in one_line(out)


def test_a_failed_proof_exits_one_with_layer_mode_and_values(run: Run, tmp_path: Path) -> None:
    state = load_file(S4D / "step-02000.safetensors")
    name = next(name for name in state if name.endswith("1.kernel.log_A_real"))
    state[name][7, 3] += 0.1
    save_file(state, tmp_path / "wrong.safetensors")
    code, out, _ = run(S4D / "step-02000.safetensors", tmp_path / "wrong.safetensors", "--strict")
    assert code == 1
    assert "DIFFERS not the same memory in 1 of 3 layers; layer 1, channel 7, mode 3: rate" in one_line(out)
    assert "9.5 % apart, 0.1 % allowed" in one_line(out)
    arguments = [S4D / "step-02000.safetensors", tmp_path / "wrong.safetensors", "--tolerance", 0.9]
    assert run(*arguments)[0] == 0
    data = json.loads(run(S4D / "step-02000.safetensors", tmp_path / "wrong.safetensors", "--strict", "-f", "json")[1])
    worst = data["layers"][1]["largest_difference"]
    assert (worst["channel"], worst["mode"]) == (7, 3)
    assert worst["b"]["rate"] == pytest.approx(math.exp(0.1) * worst["a"]["rate"], rel=1e-6)
    assert data["proven"] is False


def test_a_mode_that_is_nan_on_both_sides_is_said_to_equal_nothing(run: Run, tmp_path: Path) -> None:
    state = load_file(S4D / "step-02000.safetensors")
    state[next(name for name in state if name.endswith("1.kernel.log_A_real"))][7, 3] = math.nan
    save_file(state, tmp_path / "nan.safetensors")
    code, out, _ = run(tmp_path / "nan.safetensors", tmp_path / "nan.safetensors", "--strict")
    assert code == 1
    assert "layer 1, channel 7, mode 3: NaN in a and in b, which equals nothing" in one_line(out)
    _, out, _ = run(S4D / "step-02000.safetensors", tmp_path / "nan.safetensors", "--strict")
    assert "channel 7, mode 3: NaN in b, which equals nothing" in one_line(out)


def test_a_partly_read_run_is_reported_and_exits_two(run: Run, tmp_path: Path) -> None:
    paths = write_run(tmp_path, STEPS, drifting)
    paths[4].write_bytes(b"")
    code, out, _ = run(*paths, "--memory", "none", "--fail-on", "converging")
    assert code == 2
    assert "not read: step-4000.safetensors is empty" in out
    assert out.startswith("PROBLEM  only partly read (1 problem); layer 1 converges")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["one"], "one checkpoint alone"),
        (["one", "two", "three", "--strict"], "--strict compares two checkpoints, 3 were given"),
        (["one", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["one", "two", "--assume", "x"], "not a pair"),
        (["one", "two", "--map", "nowhere.toml"], "nowhere.toml"),
        (["one", "nowhere.safetensors", "--strict"], "does not exist"),
    ],
)
def test_bad_requests_are_sentences_and_exit_two(run: Run, tmp_path: Path, arguments: list[str], says: str) -> None:
    paths = dict(zip(("one", "two", "three"), write_run(tmp_path, STEPS[:3], steady), strict=True))
    code, out, err = run(*(paths.get(argument, argument) for argument in arguments))
    assert code == 2
    assert says in one_line(err)
    assert "Traceback" not in err
    assert out == ""


def test_a_directory_or_a_pattern_stands_for_the_run(run: Run, tmp_path: Path) -> None:
    write_run(tmp_path, STEPS[:3], steady)
    save_file({"x": torch.zeros(2)}, tmp_path / "optimizer.safetensors")
    for argument in (tmp_path, tmp_path / "step-*.safetensors"):
        code, out, _ = run(argument, "-q", "--memory", "none")
        assert (code, out[:40]) == (0, "UNDETERMINED  3 checkpoints cannot tell ")
    nested = tmp_path / "trainer"
    for path in list(tmp_path.glob("step-*")):
        directory = nested / f"checkpoint-{path.stem.removeprefix('step-')}"
        directory.mkdir(parents=True)
        path.rename(directory / "model.safetensors")
    assert "\n3 checkpoints, steps 0 to 2,000" in run(nested, "--memory", "none")[1]


def test_a_sharded_model_is_one_checkpoint_and_no_run(run: Run, tmp_path: Path) -> None:
    for shard in (1, 2):
        save_file({f"x{shard}": torch.zeros(2)}, tmp_path / f"model-0000{shard}-of-00002.safetensors")
    code, _, err = run(tmp_path)
    assert (code, "one checkpoint alone" in err) == (2, True)


@pytest.mark.slow
def test_the_report_goes_to_a_file(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    code, out, _ = run(*LRU.glob("*.safetensors"), "-f", "json", "-o", target)
    assert (code, out) == (0, "")
    assert json.loads(target.read_text())["verdict"] == "settled"


def test_colour_comes_only_when_asked(run: Run) -> None:
    assert "\x1b[" in run(*LRU.glob("*.safetensors"), "--memory", "none", "--color", "always")[1]


@pytest.mark.slow
def test_all_shows_one_row_for_each_layer(run: Run, tmp_path: Path) -> None:
    layers = tuple(map(str, range(20)))
    paths = write_run(tmp_path, STEPS[:5], steady, layers=layers)
    folded, whole, full = (
        run(*paths, "--memory", "none", "--no-plots", *flags)[1] for flags in ([], ["--all"], ["--all", "--full"])
    )
    assert [sum(line.startswith("19 ") for line in text.splitlines()) for text in (folded, whole, full)] == [0, 1, 2]
    assert len(folded.splitlines()) < len(whole.splitlines()) - 10


def steered(directory: Path, **changes: torch.Tensor) -> Path:
    """Write a Mamba-1 of two layers with projections, of which the second's are replaced by local name."""
    state: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    shapes = {"dt_proj.weight": (8, 2), "x_proj.weight": (8, 8), "in_proj.weight": (16, 5), "conv1d.weight": (8, 1, 4)}
    for layer in range(2):
        at = f"backbone.layers.{layer}.mixer."
        state[f"{at}A_log"] = torch.rand(8, 3, generator=generator)
        state[f"{at}dt_proj.bias"] = torch.randn(8, generator=generator) - 4
        for name, shape in shapes.items():
            state[f"{at}{name}"] = torch.randn(shape, generator=generator)
    state |= {f"backbone.layers.1.mixer.{name.replace('__', '.')}": value for name, value in changes.items()}
    directory.mkdir()
    save_file(state, directory / "model.safetensors")
    return directory


def test_projections_that_were_zeroed_are_named_in_the_first_lines_and_in_json(run: Run, tmp_path: Path) -> None:
    a, same = steered(tmp_path / "a"), steered(tmp_path / "same")
    b = steered(tmp_path / "b", dt_proj__weight=torch.zeros(8, 2))
    code, out, _ = run(a, same, "--strict")
    assert code == 0
    assert "8 tensors that steer it by the input to the last bit" in one_line(out)
    assert "what steers it by the input: dt_proj.weight, x_proj.weight, conv1d.weight, in_proj.weight" in one_line(out)
    code, out, _ = run(a, b, "--strict")
    assert code == 1
    said = one_line(out)
    assert "DIFFERS not the same memory in 1 of 2 layers; layer 1: its decays agree with the gates at rest" in said
    assert "dt_proj.weight (step) differs:" in said
    layers = json.loads(run(a, b, "--strict", "-f", "json")[1], parse_constant=refuse)["layers"]
    assert [layer["outcome"] for layer in layers] == ["same", "differs"]
    worst = layers[1]["steering"]["compared"][0]
    assert (worst["role"], worst["same"], worst["b"]) == ("step", False, 0.0)
    assert [one["same"] for one in layers[1]["steering"]["compared"][1:]] == [True, True, True]


def test_what_is_packed_is_not_proven_unless_it_is_stored_alike(run: Run, tmp_path: Path) -> None:
    packed = torch.arange(16, dtype=torch.uint8).reshape(8, 2)
    a, same = (steered(tmp_path / name, dt_proj__weight=packed) for name in ("a", "same"))
    b = steered(tmp_path / "b", dt_proj__weight=packed.flip(0))
    assert run(a, same, "--strict")[0] == 0
    code, out, _ = run(a, b, "--strict")
    assert code == 1
    assert one_line(out).startswith(
        "SAME AT REST not proven: 1 of 2 layers has the same memory with gates at rest, but not"
    )
    assert "layer 1: dt_proj.weight is uint8: packed, quantised or adapted, it was not compared" in one_line(out)


def test_an_adapter_beside_a_projection_leaves_the_proof_open(run: Run, tmp_path: Path) -> None:
    factors = {
        "dt_proj__lora_A__default__weight": torch.ones(1, 2),
        "dt_proj__lora_B__default__weight": torch.ones(8, 1),
    }
    base, a, b = steered(tmp_path / "base"), steered(tmp_path / "a", **factors), steered(tmp_path / "b", **factors)
    assert run(a, b, "--strict")[0] == 0
    code, out, _ = run(base, a, "--strict")
    assert code == 1
    assert "layer 1: dt_proj.weight has dt_proj.lora_A.default.weight beside it" in one_line(out)


def test_a_run_whose_projections_alone_changed_is_not_said_to_stand_still(run: Run, tmp_path: Path) -> None:
    a, same = steered(tmp_path / "a-1"), steered(tmp_path / "a-2")
    b = steered(tmp_path / "a-3", x_proj__weight=torch.ones(8, 8))
    still = "nor what steers it by the input"
    assert still in one_line(run(a, same, "--memory", "none")[1])
    out = one_line(run(a, b, "--memory", "none")[1])
    assert still not in out
    assert "what steers it by the input did: x_proj.weight in layer 1" in out
    data = json.loads(run(a, b, "--memory", "none", "-f", "json")[1])
    assert data["steering_changed"] == {"backbone.layers.1.mixer": ["x_proj.weight"]}


@pytest.mark.slow
def test_different_models_are_a_table_and_no_run(run: Run, tmp_path: Path) -> None:
    models = [S4D / "step-02000.safetensors", LRU / "step-02000.safetensors", steered(tmp_path / "mamba")]
    code, out, _ = run(*models, "--length", 256)
    assert code == 0
    assert "of 3 models the layers of" in one_line(out)
    assert [line[:2] for line in out.splitlines() if line[:2] in ("a ", "b ", "c ")] == ["a ", "b ", "c "]
    assert "margin" not in out
    data = json.loads(run(*models, "--length", 256, "-f", "json")[1], parse_constant=refuse)
    assert data["comparison"] == "table"
    assert [model["layers"][0]["family"] for model in data["models"]] == ["s4d", "lru", "mamba"]
    for given in (models, models[:2]):
        code, out, err = run(*given, "--fail-on", "converging")
        assert (code, out) == (2, "")
        assert "different models are no run" in err


@pytest.mark.slow
def test_models_of_other_sizes_or_depth_are_no_run(run: Run, tmp_path: Path) -> None:
    paths = write_run(tmp_path, STEPS[:2], steady)
    (tmp_path / "deeper").mkdir()
    deeper = write_run(tmp_path / "deeper", [2000], steady, layers=("0", "1", "2", "3"))
    assert "of 3 models the layers of" in one_line(run(*paths, *deeper, "--length", 64)[1])


@pytest.mark.slow
def test_of_two_runs_the_last_checkpoints_are_compared(run: Run) -> None:
    code, out, _ = run(S4D, LRU)
    assert code == 0
    assert "\na  s4d-digits/step-02000.safetensors" in out
    assert "step-02000.safetensors is the last of 7 checkpoints in" in one_line(run(S4D, LRU, "--full")[1])
    data = json.loads(run(S4D, LRU, "-f", "json")[1])
    assert (data["comparison"], len(data["notes"])) == ("models", 2)
    assert data["b"]["checkpoint"]["path"].endswith("lru-digits/step-02000.safetensors")
    assert "DIFFERS  not the same memory" in run(S4D, LRU, "--strict")[1]


def test_runs_whose_last_checkpoint_nothing_tells_are_refused(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in ("a1", "b2x"):
            save_file(load_file(S4D / "step-02000.safetensors"), tmp_path / name / f"{file}.safetensors")
    code, _, err = run(tmp_path / "one", tmp_path / "two")
    assert code == 2
    assert "nothing says which of the 2 checkpoints" in err


@pytest.mark.parametrize("columns", [40, 80])
def test_a_short_report_answers_first_and_fits_a_screen(run: Run, tmp_path: Path, columns: int) -> None:
    paths = write_run(tmp_path, STEPS, steady, layers=tuple(map(str, range(12))))
    _, out, _ = run(*paths, columns=columns)
    assert out.startswith("OK  no layer's slowest mode moved")
    assert "(inputs can change this)" in one_line(out)
    assert "…" not in out.partition("slowest τ in steps over")[0], "no digit is cut off"
    assert len(out.splitlines()) <= (22 if columns == 80 else 40)
    _, whole, _ = run(*paths, "--full", columns=columns)
    assert len(whole.splitlines()) > len(out.splitlines())
    assert "modes" in whole
    assert "order: the train step of each file" in one_line(whole)
