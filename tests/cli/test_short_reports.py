"""What fits on one screen: the answer first, few lines, a table of several checkpoints, the folder of a run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from ssmdiag.diagnosis import Diagnosis
from ssmdiag.reports import Settings, check_text, render
from ssmdiag.rules import known_rules
from tests.families.tiny_transformers import save_tiny
from tests.reports.example_diagnoses import diagnosis, finding, layer, remembering

Run = Callable[..., tuple[int, str, str]]
EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = EXAMPLES / "s4d-digits"
HYBRIDS = ["qwen3_next", *(pytest.param(name, marks=pytest.mark.slow) for name in ("kimi_linear", "olmo_hybrid"))]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_a_healthy_hybrid_fits_on_a_screen_and_names_its_attention(
    model_type: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, path = save_tiny(model_type, tmp_path)
    inspected, checked = run("inspect", path)[1].splitlines(), run("check", path)[1].splitlines()
    for lines in (inspected, checked):
        assert lines[0].startswith("OK  recurrent layers remember")
        assert "1 attention layer not judged" in " ".join(lines[:3])
    assert len(inspected) <= 22
    assert len(checked) <= 6
    assert checked[-1].startswith("passes: nothing at error or above (--fail-on); ")
    (caption,) = (at for at, line in enumerate(inspected) if line.startswith(" time constants"))
    picture = inspected[caption : next(at for at in range(caption, 22) if not inspected[at].startswith(" "))]
    assert len(" ".join(picture).strip()) > 0
    assert sum("context 128" in line for line in picture) == 1
    assert [line for line in inspected if "┤" in line] == [], "one picture"


def test_full_has_every_picture_and_law(run: Run) -> None:
    short, full = (run("inspect", DIGITS / "step-02000.safetensors", *more)[1] for more in ((), ("--full",)))
    assert short.splitlines()[0] == full.splitlines()[0]
    for part in (
        "eigenvalues: 1 − |λ̄|",
        "kernel of layer 2",
        "Undetermined over lags",
        "rebuild inputs",
        "not judged: ",
    ):
        assert part in full
        assert part not in short
    assert "more: --full" in short


def test_a_layer_that_decides_alone_shows_its_kernel_in_eight_lines() -> None:
    only = diagnosis(remembering(layer(0, complex_=True)), context_length=512)
    lines = render([only], "text", Settings()).splitlines()
    assert sum("┤" in line for line in lines) == 2
    (caption,) = (at for at, line in enumerate(lines) if line.startswith(" kernel in dB below its peak"))
    assert lines[caption].endswith("• as read, e exponential")
    assert lines[caption + 8].startswith("more: ")


@pytest.mark.slow
def test_layers_of_one_mode_have_no_sentence_on_capacity(run: Run, tmp_path: Path) -> None:
    _, path = save_tiny("qwen3_next", tmp_path)
    assert "rebuild inputs" not in run("inspect", path, "--full")[1]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("command", ["check", "inspect"])
def test_several_checkpoints_are_one_table_in_the_order_of_their_steps(command: str, run: Run, tmp_path: Path) -> None:
    for step in (10, 9, 100):
        shutil.copy(DIGITS / "step-02000.safetensors", tmp_path / f"step-{step}.safetensors")
    shutil.copy(DIGITS / "config.json", tmp_path)
    names = [f"step-{step}.safetensors" for step in (10, 100, 9)]
    code, out, _ = run(command, *names)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["answer", "step", "remembers", "findings", "checkpoint"]
    assert [line.split()[-1] for line in lines[1:4]] == [f"step-{step}.safetensors" for step in (9, 10, 100)]
    assert len(re.findall("SSM207 note", out)) == 1, "identical findings once"
    assert "3 of 3 checkpoints: layers 1-2 (worst: 2): " in out
    assert "3 checkpoints: 3 OK (3 with notes)" in lines[-2] + lines[-1]
    assert ("passes: nothing at error or above (--fail-on)" in " ".join(out.split())) is (command == "check")


def test_what_cannot_be_read_is_a_row_too(run: Run) -> None:
    code, out, err = run("inspect", DIGITS / "step-02000.safetensors", "gone.pt")
    assert code == 2
    assert re.search(r"^NOT READ +gone\.pt$", out, re.MULTILINE)
    assert "2 checkpoints: 1 OK (1 with notes), 1 not read" in " ".join(out.split())
    assert "gone.pt does not exist" in err
    assert "answer" not in err


@pytest.mark.one_in(2)
@pytest.mark.parametrize("command", ["inspect", "check"])
def test_the_folder_of_a_run_stands_for_its_newest_checkpoint(command: str, run: Run) -> None:
    code, out, _ = run(command, DIGITS)
    assert code == 0
    whole = f"newest of 7: step-02000.safetensors; `ssmdiag compare {DIGITS}` follows the run"
    assert "".join(whole.split()) in "".join(out.split())
    data = json.loads(run(command, DIGITS, "-f", "json")[1])
    assert data["checkpoint"]["train_step"] == 2000
    assert data["notes"][0].startswith("newest of 7: step-02000.safetensors")


def test_a_folder_of_models_without_steps_is_still_refused(run: Run, tmp_path: Path) -> None:
    for name in ("seed-1", "seed-2"):
        shutil.copy(DIGITS / "step-02000.safetensors", tmp_path / f"{name}.safetensors")
    code, out, err = run("inspect", tmp_path)
    assert (code, out) == (2, "")
    assert "holds 2 checkpoints" in err


@pytest.mark.one_in(2)
@pytest.mark.parametrize("width", [40, 140])
def test_no_number_is_cut_at_any_width(width: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = run("inspect", DIGITS / "step-02000.safetensors")[1]
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out
    for number in ("1.2k", "1.5k", "3.5k", "4.4k"):
        assert number in out
    table = run("check", *sorted(DIGITS.glob("step-*.safetensors"))[:2])[1].splitlines()
    assert max(map(len, table)) <= width
    assert all("4.5k" in line for line in table[1:3])


def many_findings(*severities: str) -> Diagnosis:
    """Six unlike layers, in each of which as many rules as there are severities have found something."""
    long = "a sentence that says in some words what was seen, with a number such as 0.001 and with its usual range"
    codes = [rule.code for rule in known_rules()][: len(severities)]
    found = [
        replace(
            finding(number, code=code, severity=severity), message=f"{long} {number}", advice=f"{long}, to be mended."
        )
        for code, severity in zip(codes, severities, strict=True)
        for number in range(6)
    ]
    layers = [remembering(layer(number, half_life=10.0 * 2**number)) for number in range(6)]
    notes = (f"S4: {long}.", f"Mamba: {long}.")
    return diagnosis(*layers, context_length=512, findings=tuple(found), notes=notes, attention_layers=("a", "b"))


@pytest.mark.parametrize(
    "severities",
    [("note",) * 5, ("warning",), ("warning",) * 3, ("error", "warning", "note", "note"), ("error",) * 9],
    ids=lambda severities: "-".join(severities),
)
def test_a_report_of_many_findings_fits_on_a_screen_and_names_those_it_leaves_out(severities: tuple[str, ...]) -> None:
    result = many_findings(*severities)
    short, full = (render([result], "text", Settings(full=full)) for full in (False, True))
    lines = short.splitlines()
    assert len(lines) <= 22
    assert lines[0] == full.splitlines()[0]
    for code in {one.code for one in result.findings}:
        assert code in short, "each is at least named"
        assert re.search(rf"^{code} \w+ +all 6 layers", full, re.MULTILINE)
    assert any("context 512" in line for line in lines), "the picture stays as long as there is any room"
    assert "2 attention layers not judged" in " ".join(lines[:5]).replace("\n", " ")


def test_check_tells_what_fails_the_build_whole_and_folds_the_rest() -> None:
    result = many_findings("error", "warning", "note", "note")
    error, warning, *notes = dict.fromkeys(one.code for one in result.findings)

    def told(**settings: Any) -> list[str]:
        return check_text.render_all([result], Settings(**settings)).splitlines()

    text = "\n".join(told())
    assert re.search(rf"^{error} error .*(\n +.*)+to be mended\.$", text, re.MULTILINE), "with what to do"
    assert re.search(rf"^{warning} warning ", text, re.MULTILINE)
    assert text.count("mended") == 1
    assert [line for line in told() if line.startswith("also 2 notes: ")] == [
        f"also 2 notes: {', '.join(f'{code} unstable-mode' for code in notes)}; --full"
    ]
    assert all(re.search(rf"^{code} note ", "\n".join(told(fail_on="note")), re.MULTILINE) for code in notes)
    assert "\n".join(told(full=True)).count("mended") == 4
    assert "\n".join(told(fail_on="note")).count("mended") == 4
    few = check_text.render_all([many_findings("note", "note")], Settings()).splitlines()
    assert len(few) <= 6


def test_a_name_of_900_characters_is_a_line_and_whole_in_full(run: Run, tmp_path: Path) -> None:
    name = f"{'encoder' * 60}.{'block' * 96}"
    layers = {
        f"{name}.{key.removeprefix('lru_layers.0.')}" if key.startswith("lru_layers.0.") else key: tensor
        for key, tensor in load_file(EXAMPLES / "lru-digits" / "step-02000.safetensors").items()
    }
    save_file(layers, tmp_path / "long.safetensors")
    for command in ("inspect", "kernel", "capacity"):
        lines = run(command, "long.safetensors")[1].splitlines()
        assert len(lines) <= 22
        assert any(name[:24] in line for line in lines)
    full = "".join(run("inspect", "--full", "long.safetensors")[1].split())
    assert f"is{name}" in full
    assert run("kernel", "--layer", name, "long.safetensors")[0] == 0
