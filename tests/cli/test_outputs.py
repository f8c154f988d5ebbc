"""Outputs of every command as users give them: never over what is read, never half, refused before the work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssmdiag.checkpoint.sources import LocalFile

Run = Callable[..., tuple[int, str, str]]

LAYER = {
    "mixer.A_log": torch.arange(1, 5).float().log().repeat(4, 1),
    "mixer.dt_proj.bias": torch.full((4,), -4.0),
    "mixer.dt_proj.weight": torch.ones(4, 2),
    "mixer.x_proj.weight": torch.ones(10, 4),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two models, which is also where the command runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "other"):
        (tmp_path / name).mkdir()
        state = {f"layers.{i}.{local}": value + i for i in range(2) for local, value in LAYER.items()}
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"max_position_embeddings": 512}')
    (tmp_path / "settings.toml").write_text("[thresholds]\n")
    (tmp_path / "map.toml").write_text(
        '[[layer]]\nname = "m"\nweight = "w"\naxes = "mode"\nmap = "exp"\ndomain = "rate"\n'
    )
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FILE = "model/model.safetensors"
REFUSED = {
    "inspect -o its file": ["inspect", FILE, "-o", FILE],
    "inspect as jsonl": ["inspect", FILE, "-f", "jsonl", "-o", FILE],
    "inspect by another name": ["inspect", FILE, "-o", "./other/../model/model.safetensors"],
    "inspect by way of a folder that is not there": ["inspect", FILE, "-o", "gone/../model/model.safetensors"],
    "check --also by such a way": ["check", "model", "--also", "json=gone/../model/config.json"],
    "inspect a folder -o its file": ["inspect", "model", "-o", FILE],
    "inspect -o config.json": ["inspect", "model", "-o", "model/config.json"],
    "inspect a file -o the config.json beside it": ["inspect", FILE, "-o", "model/config.json"],
    "inspect two -o the second": ["inspect", FILE, "other", "-o", "other/model.safetensors"],
    "inspect -o a checkpoint that is not read": ["inspect", FILE, "-o", "other/model.safetensors"],
    "inspect -o the map": ["inspect", FILE, "--map", "map.toml", "-o", "map.toml"],
    "check -o its file": ["check", FILE, "-o", FILE],
    "check --also its file": ["check", FILE, "--also", f"json={FILE}"],
    "check --also jsonl its file": ["check", FILE, "--also", f"jsonl={FILE}"],
    "check -o the settings": ["check", FILE, "--config", "settings.toml", "-o", "settings.toml"],
    "check twice the same": ["check", FILE, "-o", "x", "--also", "json=x"],
    "check twice the same copy": ["check", FILE, "--also", "json=x", "--also", "sarif=./x"],
    "check -o the new baseline": ["check", FILE, "--baseline", "b", "--write-baseline", "-o", "b"],
    "capacity -o its file": ["capacity", FILE, "-o", FILE],
    "capacity as JSON": ["capacity", "model", "-f", "json", "-o", "model/config.json"],
    "compare -o one of them": ["compare", FILE, "other/model.safetensors", "-o", "other/model.safetensors"],
    "compare --strict": ["compare", "--strict", "model", "other", "-o", "other/config.json"],
    "kernel -o its file": ["kernel", FILE, "-o", FILE],
    "watch -o one of its files": ["watch", "other", "--idle", "0", "-o", "other/model.safetensors"],
    "watch -o a file one level below": ["watch", ".", "--idle", "0", "-f", "jsonl", "-o", FILE],
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_read_is_not_written_over_and_the_work_is_not_begun(
    case: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(*arguments: object, **options: object) -> None:
        raise AssertionError("the work is begun")

    if not case.startswith("kernel"):
        # A method: a function would stay replaced in every module that is first imported here.
        monkeypatch.setattr(LocalFile, "__init__", begun)
    before = contents(folder)
    code, out, err = run(*REFUSED[case])
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert err.startswith(("error: --", "SsmdiagError: --output"))
    assert contents(folder) == before


def test_a_baseline_that_is_read_is_no_output(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    assert run("check", FILE, "--baseline", "b", "--write-baseline")[0] == 0
    before = contents(folder)
    code, _, err = run("check", FILE, "--baseline", "b", "-o", "b")
    assert code == 2
    assert "the same file" in err or "that the command reads" in err
    assert contents(folder) == before


def test_a_report_of_an_earlier_run_is_replaced(run: Run, folder: Path) -> None:
    for _ in range(2):
        assert run("check", FILE, "-o", "r", "--also", "json=r.json", "--also", "sarif=r.sarif")[0] == 0
        json.loads(Path("r.json").read_text())
    assert {*os.listdir(folder)} == {"model", "other", "map.toml", "settings.toml", "r", "r.json", "r.sarif"}


@pytest.mark.slow
def test_json_lines_are_added_to_those_of_an_earlier_run(run: Run, folder: Path) -> None:
    assert run("inspect", FILE, "-f", "jsonl", "-o", "r.jsonl")[0] == 0
    with Path("r.jsonl").open("a") as file:
        file.write('{"schema_version": 1, "torn')
    assert run("check", FILE, "other", "--also", "jsonl=r.jsonl")[0] == 0
    paths = [json.loads(line)["checkpoint"]["path"] for line in Path("r.jsonl").read_text().splitlines()]
    assert paths == [FILE, FILE, "other"]
    code, _, err = run("inspect", FILE, "-f", "jsonl", "-o", "settings.toml")
    assert code == 2
    assert "nothing was added to it" in err
    assert Path("settings.toml").read_text() == "[thresholds]\n"


@pytest.mark.one_in(3)
@pytest.mark.parametrize("output", [".", "model", "none/r", "n" * 300])
@pytest.mark.parametrize("command", ["inspect", "check", "capacity", "compare"])
def test_no_output_ends_in_a_traceback(command: str, output: str, run: Run, folder: Path) -> None:
    code, out, err = run(command, FILE, *(["other"] * (command == "compare")), "-o", output)
    assert (code, out) == (2, "")
    assert err.startswith("error: --output ")
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.usefixtures("heard_signals")
def test_nothing_is_left_of_kernels_that_are_interrupted(folder: Path) -> None:
    code = "import sys\nfrom ssmdiag.cli import main\nimport ssmdiag.kernel.file as file\nimport time\n"
    code += "def wait(*a, **k):\n    print('half', flush=True)\n    time.sleep(60)\nfile.compute_kernel = wait\nmain()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "kernel", FILE, "-o", "k.npz"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    assert any(name.startswith(".ssmdiag-") for name in os.listdir(folder))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert not any(name.startswith((".ssmdiag-", "k.npz")) for name in os.listdir(folder))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("command", ["inspect", "check"])
def test_the_look_at_outputs_comes_before_torch_is_imported(command: str, folder: Path) -> None:
    code = "import sys\nfrom ssmdiag.cli import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    arguments = [sys.executable, "-c", code, command, FILE, "-o", FILE]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "False\n")


def test_a_shard_of_any_name_is_not_written_over(run: Run, folder: Path) -> None:
    model = folder / "sharded"
    (model / "a").mkdir(parents=True)
    places = {}
    for number, file in enumerate(("part0", "a/weights")):
        tensors = {f"layers.{number}.{local}": value.clone() for local, value in LAYER.items()}
        save_file(tensors, model / file)
        places |= dict.fromkeys(tensors, file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    before = contents(folder)
    for target in ("sharded/part0", "sharded/a/weights", "sharded/./a/../part0"):
        for given in ("sharded", "sharded/model.safetensors.index.json"):
            code, _, err = run("inspect", given, "-o", target)
            assert (code, "which the command reads" in err or "that the command reads" in err) == (2, True), err
    assert contents(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_a_stream_is_not_added_to_what_retrain_reads(number: int, folder: Path) -> None:
    (folder / "corpus.txt").write_text("to be or not to be\n" * 200)
    code = "from ssmdiag.cli import run; run()"
    command = [sys.executable, "-c", code, "retrain", "--task", "text", "--text", "corpus.txt", "--steps", "1"]
    with (folder / "corpus.txt").open("ab") as out:
        streams = {"stdout": out} if number == 1 else {"stderr": out}
        done = subprocess.run(command, cwd=folder, **{"stdout": subprocess.DEVNULL, **streams})  # type: ignore[call-overload]
    assert done.returncode == 2
    text = (folder / "corpus.txt").read_text()
    assert text.startswith("to be or not to be\n" * 200)
    assert number == 2 or text == "to be or not to be\n" * 200


@pytest.mark.one_in(4)
@pytest.mark.parametrize("command", ["inspect", "check", "capacity", "kernel"])
def test_a_report_is_not_added_to_the_model_by_the_shell(command: str, folder: Path) -> None:
    before = contents(folder)
    code = "from ssmdiag.cli import run; run()"
    with (folder / FILE).open("ab") as out:
        done = subprocess.run(
            [sys.executable, "-c", code, command, FILE], stdout=out, stderr=subprocess.PIPE, cwd=folder, text=True
        )
    assert done.returncode == 2
    assert "standard output is written to" in done.stderr
    assert contents(folder) == before


UNREADABLE = {
    "a pipe": lambda path: os.mkfifo(path),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "torn": lambda path: path.write_text('{"max_position'),
}
SAYING = [
    ["inspect", "-q"], ["inspect", "-f", "json"], ["check"], ["check", "-q"], ["check", "-f", "github"],
    ["check", "-f", "sarif"], ["check", "-f", "junit"], ["check", "-f", "markdown"], ["check", "-f", "jsonl"],
    ["capacity", "-q"], ["capacity", "-f", "json"], ["kernel", "-q"], ["kernel", "-o", "k.npz"],
    ["compare", "other", "-q"], ["compare", "other", "--strict"],
]  # fmt: skip


@pytest.mark.one_in(19)
@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("arguments", SAYING, ids=" ".join)
def test_settings_that_cannot_be_read_are_named_and_exit_with_2(
    arguments: list[str], kind: str, run: Run, folder: Path
) -> None:
    Path("model/config.json").unlink()
    UNREADABLE[kind](Path("model/config.json"))
    code, out, err = run(arguments[0], "model", *arguments[1:])
    assert code == 2
    assert "model/config.json cannot be read" in " ".join((out + err).split())


EMPTY = {
    "a path": (["inspect", ""], "inspect"),
    "a second path": (["check", FILE, ""], FILE),
    "kernel": (["kernel", "-q", ""], "-q"),
    "compare": (["compare", "", "model"], "compare"),
    "retrain": (["retrain", ""], "retrain"),
    "explain": (["explain", ""], "explain"),
    "families": (["families", ""], "families"),
    "-o": (["inspect", FILE, "-o", ""], "-o"),
    "-o of kernels": (["kernel", FILE, "-o", ""], "-o"),
    "-o of retrain": (["retrain", "--steps", "1", "-o", ""], "-o"),
    "--output=": (["inspect", FILE, "--output="], "--output"),
    "--also": (["check", FILE, "--also", ""], "--also"),
    "--baseline": (["check", FILE, "--write-baseline", "--baseline", ""], "--baseline"),
    "--map": (["inspect", FILE, "--map", ""], "--map"),
    "--config": (["check", FILE, "--config", ""], "--config"),
    "config show": (["config", "show", "--config="], "--config"),
    "--layer": (["capacity", FILE, "--layer", ""], "--layer"),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", EMPTY)
def test_an_empty_argument_is_not_taken_for_the_folder(case: str, run: Run, folder: Path) -> None:
    arguments, where = EMPTY[case]
    before = contents(folder)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {where} is followed by an empty argument.")
    assert contents(folder) == before


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["ssmdiag.toml", "pyproject.toml", "given.toml"])
def test_settings_are_not_shown_into_the_file_they_come_from(name: str, folder: Path) -> None:
    head = "[tool.ssmdiag]\n" if name == "pyproject.toml" else ""
    Path(name).write_text(f'{head}fail-on = "note"\n')
    more = ["--config", name] if name == "given.toml" else []
    before = Path(name).read_bytes()
    with Path(name).open("ab") as end:
        shown = subprocess.run(
            [sys.executable, "-m", "ssmdiag", "config", "show", *more], stdout=end, stderr=subprocess.PIPE, text=True
        )
    assert shown.returncode == 2
    assert f"{name}, which the command reads" in shown.stderr
    assert Path(name).read_bytes() == before


def test_settings_are_shown_into_a_new_file(folder: Path) -> None:
    with Path("ssmdiag.toml").open("wb") as new:
        shown = subprocess.run([sys.executable, "-m", "ssmdiag", "config", "show"], stdout=new, stderr=subprocess.PIPE)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"fail-on" in Path("ssmdiag.toml").read_bytes()


SHOWING = {
    "inspect": ["inspect", FILE],
    "check": ["check", FILE],
    "capacity": ["capacity", FILE],
    "compare models": ["compare", FILE, "other"],
    "kernel": ["kernel", FILE, "--layer", "1"],
}
BEGINS = {
    ".html": "<!DOCTYPE html>", ".svg": "<svg ", ".json": '{\n  "schema_version"', ".jsonl": '{"schema_version"',
    ".md": "**", ".sarif": '{\n  "$schema"', ".xml": "<?xml", ".txt": "", ".HTML": "<!DOCTYPE html>",
    ".sarif.json": '{\n  "$schema"', ".csv": "checkpoint,train_step,",
}  # fmt: skip
WRITES = {
    "inspect": {".html", ".HTML", ".svg", ".csv", ".json", ".jsonl", ".md", ".txt"},
    "check": {".html", ".HTML", ".json", ".jsonl", ".md", ".sarif", ".sarif.json", ".xml", ".txt"},
    "capacity": {".html", ".HTML", ".svg", ".json", ".txt"},
    "compare models": {".html", ".HTML", ".svg", ".json", ".txt"},
    "kernel": {".html", ".HTML", ".svg", ".json"},
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("suffix", [*BEGINS, ".pdf"])
@pytest.mark.parametrize("command", SHOWING)
def test_the_format_follows_the_suffix_or_the_suffix_is_refused(
    command: str, suffix: str, run: Run, folder: Path
) -> None:
    before = contents(folder)
    code, out, err = run(*SHOWING[command], "-o", f"report{suffix}")
    if suffix in WRITES[command]:
        assert (code, out) == (0, ""), err
        text = Path(f"report{suffix}").read_text()
        assert text.startswith(BEGINS[suffix])
        assert suffix != ".txt" or not text.startswith(("<", "{"))
    else:
        assert (code, out) == (2, "")
        assert f"report{suffix}" in err
        assert suffix.rpartition(".")[2] in err
        assert contents(folder) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", FILE, "-f", "json", "-o", "r.html"], "--output r.html: .html is html, and --format says json"),
        (["check", FILE, "-f", "sarif", "-o", "r.xml"], "--output r.xml: .xml is junit, and --format says sarif"),
        (["compare", FILE, "other", "-f", "text", "-o", "r.json"], "and --format says text"),
        (["check", FILE, "--also", "json=r.html"], "--also json=r.html: .html is html"),
        (["capacity", FILE, "--also", "sarif=r.sarif"], "--also sarif=r.sarif: not understood"),
        (["kernel", FILE, "-o", "k.npz", "--also", "svg=k.svg"], "kernels are written, and no report"),
        (["inspect", FILE, "other", "-o", "r.svg"], "a picture is of one checkpoint"),
        (["compare", "--strict", FILE, FILE, "-o", "r.svg"], "there is nothing to draw"),
        (["retrain", "--steps", "1", "-o", "r.html"], "--also html=r.html writes the report there"),
        (["watch", "other", "--idle", "0", "-o", "r.html"], "this command writes no .html"),
    ],
)
def test_a_suffix_that_disagrees_is_refused(arguments: list[str], said: str, run: Run, folder: Path) -> None:
    before = contents(folder)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert contents(folder) == before


def test_a_name_without_a_suffix_and_a_given_format_agree_with_any(run: Run, folder: Path) -> None:
    for arguments in (["-o", "r"], ["-f", "json", "-o", "r.of-today"], ["-f", "html", "-o", "step-0.5"]):
        assert run("inspect", FILE, *arguments)[0] == 0
    assert Path("r").read_text().splitlines()[0].startswith("WARNING  2 of 2 recurrent layers")
    assert json.loads(Path("r.of-today").read_text())
    assert Path("step-0.5").read_text().startswith("<!DOCTYPE html>")


def test_copies_are_written_besides_and_the_page_says_what_was_typed_without_secrets(run: Run, folder: Path) -> None:
    code, out, _ = run("capacity", FILE, "--also", "html=r.html", "--also", "svg=r.svg", "--also", "json=r.json")
    assert code == 0
    assert out.startswith("OK  layer 1 rebuilds")
    assert "\nmodel.safetensors  " in out
    assert Path("r.svg").read_text().startswith("<svg ")
    page = Path("r.html").read_text()
    assert "ssmdiag capacity model/model.safetensors --also html=r.html" in page
    assert all(layer["name"] in page for layer in json.loads(Path("r.json").read_text())["layers"])


@pytest.mark.slow
def test_the_arms_of_a_training_are_a_page(run: Run, folder: Path) -> None:
    few = ["--steps", "4", "--width", "2", "--modes", "2", "--length", "16", "--samples", "8", "--batch", "4"]
    code, out, err = run("retrain", *few, "-q", "--perturb", "--also", "html=r.html", "--also", "svg=r.svg")
    assert (code, out != "") == (0, True), err
    page = Path("r.html").read_text()
    for said in ("Validation loss over training", "Learned kernels", "Loss with noise on the rates", "ssmdiag retrain"):
        assert said in page
