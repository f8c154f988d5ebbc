"""The command as its user runs it: streams, exit codes, files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssmdiag.cli import terminal
from tests.checkpoint.formats.flax_files import S5_TRAIN_STATE


@pytest.fixture
def mamba(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for i in range(3):
        state |= {
            f"backbone.layers.{i}.mixer.A_log": torch.arange(1, 17).float().log().repeat(8, 1),
            f"backbone.layers.{i}.mixer.dt_proj.bias": torch.randn(8, generator=generator) - 4,
            f"backbone.layers.{i}.mixer.dt_proj.weight": torch.randn(8, 2, generator=generator),
            f"backbone.layers.{i}.mixer.x_proj.weight": torch.randn(34, 8, generator=generator),
        }
    path = tmp_path / "mamba.safetensors"
    save_file(state, path)
    return path


def test_inspect_prints_the_answer_and_exits_zero(run, mamba: Path) -> None:
    code, out, err = run("inspect", mamba)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].startswith("WARNING  a recurrent module lacks a tensor that its siblings have (SSM406); its")
    assert "its layers remember up to about 410 steps with the gates at rest;" in " ".join(lines)
    assert lines[3].startswith("mamba.safetensors  Mamba-1, 3 layers  reads")


def test_json_on_stdout_is_json_alone(run, mamba: Path) -> None:
    code, out, _ = run("inspect", mamba, "--format", "json")
    data = json.loads(out)
    assert code == 0
    assert [layer["modes"] for layer in data["layers"]] == [16, 16, 16]
    assert data["layers"][0]["operating_point"] == "the gates at their bias"


@pytest.mark.slow
def test_length_sets_the_context(run, mamba: Path) -> None:
    assert "of its 4,096 steps of context" in run("inspect", mamba, "--length", 4096)[1].replace("\n", " ")
    assert "its context is unknown" in run("inspect", mamba)[1].replace("\n", " ")


def test_horizon_and_law_stand_in_the_table_and_in_json(run, mamba: Path) -> None:
    code, out, _ = run("inspect", mamba, "--length", 512, "--no-plots", "--full")
    assert code == 0
    assert "horizon" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "over lags 0 to 511" in out.replace("\n", " ").replace("   ", "")
    (first, *_) = json.loads(run("inspect", mamba, "--length", 512, "-f", "json")[1])["layers"]
    assert first["horizon"]["min"] >= 1
    assert sum(first["decay"]["channels"].values()) == first["channels"]
    assert first["decay"]["layer"]["window"] == [0, 511]


@pytest.mark.slow
def test_one_bad_path_does_not_hide_the_others(run, mamba: Path, tmp_path: Path) -> None:
    code, out, err = run("inspect", tmp_path / "mamba.safetensor", mamba)
    assert code == 2
    assert "mamba.safetensors" in out
    assert "2 checkpoints: 1 with warnings, 1 not read" in out
    assert "does not exist" in err
    assert "did you mean mamba.safetensors?" in err


def test_jsonl_has_one_line_per_path_failures_included(run, mamba: Path, tmp_path: Path) -> None:
    code, out, _ = run("inspect", mamba, tmp_path / "nothing.pt", "-f", "jsonl")
    first, second = map(json.loads, out.splitlines())
    assert code == 2
    assert len(first["layers"]) == 3
    assert second["error"]["kind"] == "CheckpointError"


@pytest.mark.slow
def test_output_goes_to_the_file_and_nowhere_else(run, mamba: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.txt"
    code, out, err = run("inspect", mamba, "--output", target)
    assert (code, out, err) == (0, "", "")
    assert target.read_text(encoding="utf-8").startswith("WARNING  a recurrent")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mamba.safetensors", "report.txt"]


def test_output_that_cannot_be_written_is_a_sentence(run, mamba: Path, tmp_path: Path) -> None:
    code, _, err = run("inspect", mamba, "--output", tmp_path / "no" / "report.txt")
    assert code == 2
    assert "cannot be written" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--assume", "real_transform"], "not a pair"),
        (["--assume", "nonsense=1"], "no family has a setting nonsense"),
        (["--assume", "family=nonsense"], "no such family"),
        (["--device", "cuda"], "no CUDA device"),
    ],
)
def test_bad_options_are_sentences_and_exit_two(run, mamba: Path, arguments: list[str], says: str) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        says = ""
    code, _, err = run("inspect", mamba, *arguments)
    assert code == 2 or not says
    assert says in err
    assert "Traceback" not in err


def test_unknown_options_exit_two(run, mamba: Path) -> None:
    assert run("inspect", mamba, "--no-such-option")[0] == 2


def test_a_crash_exits_two_and_shows_where(run, mamba: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssmdiag.diagnosis

    def crash(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(ssmdiag.diagnosis, "diagnose", crash)
    code, _, err = run("inspect", mamba)
    assert code == 2
    assert "ZeroDivisionError: planted" in err
    assert "a bug in ssmdiag" in err


@pytest.mark.slow
def test_a_closed_pipe_is_no_crash(mamba: Path) -> None:
    command = f"{sys.executable} -m ssmdiag inspect --all {mamba} | head -n 1"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert result.stdout.startswith("WARNING  a recurrent")
    assert "Traceback" not in result.stderr


def test_python_dash_m_runs_it() -> None:
    result = subprocess.run([sys.executable, "-m", "ssmdiag", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("ssmdiag ")


def test_families_lists_every_family_and_explains_one(run) -> None:
    from ssmdiag import known_families

    code, out, _ = run("families")
    assert code == 0
    assert all(f"  {family.name} " in out for family in known_families())
    assert "A_log" in run("families", "mamba")[1]
    assert json.loads(run("families", "--format", "json")[1])[0]["spellings"]
    assert run("families", "mambo")[0] == 2


def test_families_says_which_can_be_observed_on_a_live_model(run) -> None:
    from ssmdiag import known_families

    listed = json.loads(run("families", "--format", "json")[1])
    observable = {f.name: f.memory == "nominal" and "linearised" not in f.traits for f in known_families()}
    assert {one["name"]: one["clock"] for one in listed} == observable
    assert "can be observed on real input" in run("families", "mamba")[1]
    assert "observed" not in run("families", "s4")[1]
    assert "observes it on real input, except of rnn." in " ".join(run("families")[1].split())


def test_colour_follows_the_option_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as terminal_:
        terminal_.setattr(sys.__stdout__, "isatty", lambda: True)
        assert terminal.colour("auto", sys.__stdout__)
        terminal_.setenv("CLICOLOR", "0")
        assert not terminal.colour("auto", sys.__stdout__)
    assert terminal.colour("auto", sys.__stdout__) is sys.__stdout__.isatty()
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert terminal.colour("auto")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not terminal.colour("auto")
    assert terminal.colour("always")
    assert not terminal.colour("never")


def test_width_is_columns_else_eighty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "132")
    assert terminal.width() == 132
    monkeypatch.setenv("COLUMNS", "7")
    assert terminal.width() == 40
    monkeypatch.delenv("COLUMNS")
    assert terminal.width() == 80


def test_a_train_state_of_flax_is_inspected_by_its_name_and_by_its_folder(run, tmp_path: Path) -> None:
    (tmp_path / "flax_model.msgpack").write_bytes(S5_TRAIN_STATE)
    for path in (tmp_path, tmp_path / "flax_model.msgpack"):
        code, out, err = run("inspect", "--no-plots", path)
        assert (code, err) == (0, "")
        assert "S5, 2 layers" in out
