"""`ssmdiag probe`: a directory and a text, functions and their batches, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families.tiny_transformers import tiny_model

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--length", 32, "--cuts", 1, "--quiet")

FUNCTIONS = """
import torch
from torch import nn

class Taps(nn.Conv1d):
    def forward(self, x):
        return super().forward(nn.functional.pad(x.transpose(1, 2), (3, 0))).transpose(1, 2), None

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.core = Taps(3, 4, 4)

    def forward(self, x):
        return self.core(x)[0]

def model():
    return Model()

def tensor():
    return torch.randn(3, 32, 3)

def batches():
    for _ in range(100):
        yield torch.randn(1, 40, 3)

def both():
    return (torch.zeros(2, 8, 3), torch.zeros(2, 8, 3)), (torch.randn(2, 32, 3), torch.zeros(2, 32, 3))

def word():
    return "text"

def nothing():
    return []

class Last(Model):
    def forward(self, x):
        return self.core(x)[0][:, -1]

def last():
    return Last()

class Short(Model):
    def forward(self, x):
        if x.shape[1] > 16:
            raise IndexError("index out of range in self")
        return self.core(x)[0]

def short():
    return Short()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a tiny byte model."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    model = tiny_model("mamba2", vocab_size=256).float()
    model.config.dtype = "float32"
    model.save_pretrained(path)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("a line that says what it says, and says it again\n" * 20)
    return path


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_probe.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_probe", raising=False)
    return "own_probe"


def test_a_directory_and_a_text_are_a_report(run: Run, folder: Path, text: Path) -> None:
    code, out, _ = run("probe", folder, "--text", text, "--length", 32, "--cuts", 1, "--no-plots", "--full")
    assert code == 0
    assert "the answers " in out.splitlines()[0], "the headline is what the model uses of its past"
    assert "tiny  Mamba-2, 2 layers  4 texts of 32 steps (text.txt)  cpu float32" in out.replace("\n", " ")
    rows = "".join(line[0] for line in out.splitlines() if line[:2] in ("0 ", "1 "))
    assert rows == rows[:2] * (len(rows) // 2) == "01" * (len(rows) // 2), "a row for each layer in every table"
    assert "with its state rounded at every step" in out.replace("\n", " ").replace("   ", " ")
    assert len(rows) >= 4, "half-lives, then errors of a rounded state"


def test_the_folder_of_a_run_stands_for_its_newest_checkpoint(
    run: Run, folder: Path, text: Path, tmp_path: Path
) -> None:
    for step in (9, 10):
        shutil.copytree(folder, tmp_path / "run" / f"checkpoint-{step}")
    code, out, err = run("probe", tmp_path / "run", "--text", text, "--length", 32, "--cuts", 1, "--no-plots")
    assert code == 0
    assert "\ncheckpoint-10  Mamba-2, 2 layers" in out
    assert f"note: newest of 2: checkpoint-10; `ssmdiag compare {tmp_path / 'run'}` follows the run" in err
    (tmp_path / "none").mkdir()
    code, out, err = run("probe", tmp_path / "none", "--text", text, *SMALL)
    assert (code, out) == (2, "")
    assert "none" in err


def test_the_document_has_what_the_contract_names(run: Run, folder: Path, text: Path) -> None:
    code, out, _ = run("probe", folder, "--text", text, "--compare", text, *SMALL, "-f", "json")
    assert code == 0
    found = json.loads(out)
    assert found["schema_version"] == 1
    assert (found["text"], found["length"], found["texts"], found["device"]) == ([str(text)], 32, 4, "cpu")
    assert found["model"] == {"path": str(folder), "class": "Mamba2ForCausalLM"}
    layer = found["layers"][0]
    assert (layer["name"], layer["family"]) == ("backbone.layers.0.mixer", "mamba2")
    assert set(layer["nominal"]) == {"min", "p05", "median", "p95", "max"}
    assert set(layer["observed"]) >= {"half_life", "censored", "reset", "hold", "retention", "law", "law_agreement"}
    assert set(layer["observed"]["half_life"]) == {"min", "p05", "median", "p95", "p99", "max", "at_least"}
    assert layer["observed"]["retention"][0] == [0, 1.0]
    assert set(found["use"]["by_cutting"]) >= {"half", "nine_tenths", "all_but_a_hundredth", "tested", "interval"}
    assert found["use"]["by_cutting"]["tested"] == 16
    assert found["recurrence"]["dtype"] == "float32"
    (other,) = found["compared"]
    assert other["layers"] == found["layers"], "the same text"


def test_a_module_and_its_data_are_functions(run: Run, functions: str) -> None:
    for data in ("tensor", "batches", "both"):
        code, out, errors = run(
            "probe", "--model", f"{functions}:model", "--data", f"{functions}:{data}", *SMALL, "-f", "json"
        )
        assert code == 0, errors
        found = json.loads(out)
        assert (found["layers"], found["recurrence"]) == ([], None)
        assert found["use"]["by_cutting"]["tested"] == 16
        assert found["texts"] == {"tensor": 3, "batches": 4, "both": 2}[data]


def test_a_report_of_a_module_without_layers_is_its_use(run: Run, functions: str) -> None:
    code, out, _ = run("probe", "--model", f"{functions}:model", "--data", f"{functions}:tensor", *SMALL)
    assert code == 0
    assert out.startswith("OK  the answers ")
    assert "layer" not in out.splitlines()[0]


@pytest.mark.parametrize(("model", "options", "code"), [("last", (), 2), ("model", ("--cuts", 0), 2), ("model", (), 0)])
def test_a_probe_that_measured_nothing_has_not_succeeded(
    run: Run, functions: str, model: str, options: tuple[object, ...], code: int
) -> None:
    given = ("--model", f"{functions}:{model}", "--data", f"{functions}:tensor", *SMALL, *options)
    found, out, _ = run("probe", *given)
    assert found == code
    nothing = f"UNDETERMINED  {model.capitalize()} has no layer"
    assert out.startswith("OK  the answers " if code == 0 else nothing)


def test_the_use_of_the_past_that_was_not_asked_for_is_not_missing(run: Run, folder: Path, text: Path) -> None:
    assert run("probe", folder, "--text", text, *SMALL, "--cuts", 0)[0] == 0
    assert run("probe", folder, "--text", text, *SMALL, "--length", 2)[0] == 2, "too short for the use to be measured"


def test_a_text_that_is_too_short_is_refused_by_name(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("short")
    code, out, errors = run("probe", folder, "--text", text, "--text", short, *SMALL)
    assert (code, out) == (2, "")
    assert f"{short}: 5 bytes" in errors
    assert "a smaller --length" in errors


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "there is no model"),
        (["--model", "own_probe:model"], "there is nothing to show the model"),
        (["--model", "own_probe:model", "--data", "own_probe:word"], "returned a str"),
        (["--model", "own_probe:model", "--data", "own_probe:tensor", "--compare", "x"], "--compare is another text"),
        (["--model", "own_probe:model", "--data", "own_probe:tensor", "--text", "x"], "two inputs"),
        (["--model", "own_probe:model", "--data", "own_probe:tensor", "--dtype", "float16"], "decides itself"),
        (["DIR", "--model", "own_probe:model", "--data", "own_probe:tensor"], "two models"),
        (["--model", "own_probe:model", "--data", "own_probe:nothing"], "own_probe:nothing: returned no batch"),
        (["--model", "own_probe:short", "--data", "own_probe:tensor"], "the model failed on 3 sequences of 32 steps"),
    ],
)
def test_what_cannot_be_run_is_a_sentence(run: Run, functions: str, options: list[str], said: str) -> None:
    code, out, errors = run("probe", *options, *SMALL)
    assert (code, out) == (2, "")
    assert said in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_report_goes_to_a_file(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    target = tmp_path / "p.json"
    code, out, _ = run("probe", folder, "--text", text, *SMALL, "-f", "json", "-o", target)
    assert (code, out) == (0, "")
    assert json.loads(target.read_text())["schema_version"] == 1
    code, _, errors = run("probe", folder, "--text", text, *SMALL, "-o", text)
    assert code == 2
    assert "text.txt" in errors


def test_a_probe_is_a_page_with_its_pictures(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    page, data = tmp_path / "p.html", tmp_path / "p.json"
    assert run("probe", folder, "--text", text, *SMALL, "-o", page, "--also", f"json={data}")[0] == 0
    shown, layers = page.read_text(), json.loads(data.read_text())["layers"]
    assert "Retention of layer" in shown
    assert "Use of the past" in shown
    for layer in layers:
        assert f'<data value="{layer["observed"]["half_life"]["median"]!r}">' in shown


def test_check_judges_what_a_probe_observed(run: Run, folder: Path, text: Path, tmp_path: Path) -> None:
    kept = tmp_path / "p.json"
    run("probe", folder, "--text", text, *SMALL, "-f", "json", "-o", kept)
    code, out, _ = run("check", folder, "--probe", kept, "--isolated", "-f", "json")
    assert code == 0
    assert not any(finding["code"].startswith("SSM6") for finding in json.loads(out)["findings"])
    found = json.loads(kept.read_text())
    found["layers"][0]["observed"]["hold"] = 0.0
    kept.write_text(json.dumps(found))
    code, out, _ = run("check", folder, "--probe", kept, "--isolated", "--fail-on", "note", "--select", "SSM6")
    assert code == 1
    assert "SSM601 note" in out
    found["use"] = None
    for layer in found["layers"]:
        layer["observed"]["rounded_state"] = None
    kept.write_text(json.dumps(found))
    code, out, _ = run("check", folder, "--probe", kept, "--isolated", "--select", "SSM6")
    assert "SSM603 (the probe did not measure the use of the past)" in " ".join(out.split())
    assert "SSM604 (the probe stepped no layer with a rounded state)" in " ".join(out.split())
    kept.write_text(json.dumps(found | {"layers": []}))
    code, out, _ = run("check", folder, "--probe", kept, "--isolated", "--select", "SSM6")
    assert "SSM601, SSM602, SSM604 (the probe observed no layer)" in " ".join(out.split())
    assert "; 0 of 4 rules on " in out
    found["recurrence"]["sha256"] = "0" * 64
    kept.write_text(json.dumps(found))
    code, _, errors = run("check", folder, "--probe", kept, "--isolated")
    assert code == 2
    assert "measured on another model" in errors
    code, out, _ = run("check", folder, "--isolated", "--select", "SSM6")
    assert code == 0
    assert "not judged: SSM601, SSM602, SSM603, SSM604 (nothing was observed of the model" in " ".join(out.split())
