"""A hostile checkpoint through every command and format: what it is called reaches no terminal and no CI runner.

Names of files, folders, tensors, layers and metadata hold escapes, line ends, marks of direction and commands of CI
runners. Looked at are the bytes that a process writes, to its streams and to files.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file

from ssmdiag.reports import formats
from tests.test_printable import acts

EVIL = (
    "\x1b[31m\x1b]0;owned\x07\r\n::add-mask::x\n ##[add-mask]y##vso[task]\x9b2J\u202e\u2028\u200b\x7f[bold]|`<b>λ層🙂"
)
"""In the name of a file."""
DEEP = EVIL.replace("]", "")
"""In the name of a tensor, where brackets are read as JAX writes them."""
LAYER = {
    "mixer.A_log": torch.arange(1, 5).float().log().repeat(4, 1),
    "mixer.dt_proj.bias": torch.full((4,), -4.0),
    "mixer.dt_proj.weight": torch.ones(4, 2),
    "mixer.x_proj.weight": torch.ones(10, 4),
}
COLOUR = re.compile(r"\x1b\[[0-9;]*m")

Run = Callable[..., tuple[int, str, str]]


def model(path: Path, *, broken: bool = True, shift: float = 0.0) -> Path:
    """Write a model whose names are hostile; its second layer is not finite, a third is not whole."""
    state = {f"{DEEP}.{i}{DEEP}.{i}.{local}": value + i + shift for i in range(2) for local, value in LAYER.items()}
    if broken:
        state[f"{DEEP}.1{DEEP}.1.mixer.A_log"][0, 0] = float("nan")
        state[f"{DEEP}.2{DEEP}.2.mixer.A_log"] = LAYER["mixer.A_log"] + 2
        state[f"{DEEP}.cell.A_log"] = torch.ones(3)
    save_file(state, path, {"note": EVIL})
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    model(tmp_path / f"{EVIL}.safetensors")
    for step in (1, 2, 3):
        model(tmp_path / f"{step}{EVIL}.pt.safetensors", broken=False, shift=step / 100)
    save_file(
        {f"{DEEP}.{i}.{DEEP}.log_decay": torch.ones(3) + i for i in range(2)}, tmp_path / f"unknown{EVIL}.safetensors"
    )
    (tmp_path / f"torn{EVIL}.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / f"empty{EVIL}").mkdir()
    (tmp_path / f"map{EVIL}.toml").write_text(f"{EVIL} = 1")
    (tmp_path / f"set{EVIL}.toml").write_text('"\\u001b[31m\\n::x::" = 1')
    (tmp_path / f"baseline{EVIL}.json").write_text(json.dumps({EVIL: 1}))
    index = {"weight_map": {EVIL: f"{EVIL}.safetensors", "b": "../x", f"c{EVIL}": f"d{EVIL}.bin"}}
    (tmp_path / f"lost{EVIL}.index.json").write_text(json.dumps(index))
    return tmp_path


def named(start: str) -> str:
    """Return the file in the working directory whose name starts so."""
    (found,) = [name for name in os.listdir() if name.startswith(start)]
    return found


def assert_harmless(text: str, *, coloured: bool = False, commands: bool = False) -> None:
    """Assert that a text moves no cursor, hides nothing, and gives a runner no command but `commands`' own."""
    if not coloured:
        assert "\x1b" not in text
    plain = COLOUR.sub("", text)
    assert acts(plain, "\n") == []
    assert not re.search(r"##\w*\[", plain)
    starts = [line for line in plain.split("\n") if line.lstrip().startswith("::")]
    assert all(commands and re.match("::(error|warning|notice) (file|title)=", line) for line in starts), starts


def strings(document: object) -> Iterator[str]:
    """Yield all strings of a JSON document, keys too."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        yield from document
        for value in document.values():
            yield from strings(value)
    elif isinstance(document, list):
        for value in document:
            yield from strings(value)


CASES: dict[str, list[str]] = {
    "inspect": ["inspect", "\x1b", "1", "--verbose", "--all"],
    "check": ["check", "\x1b", "1"],
    "what cannot be read": ["inspect", "torn", "unknown", "lost", "empty", "absent\x1b[31m\n::x::"],
    "capacity": ["capacity", "1"],
    "capacity of a broken one": ["capacity", "\x1b"],
    "kernel": ["kernel", "1"],
    "kernel of a layer": ["kernel", "1", "--layer", "nothing\x1b\n::x::"],
    "compare a run": ["compare", "1", "2", "3"],
    "compare two": ["compare", "1", "\x1b", "--full"],
    "compare strictly": ["compare", "--strict", "1", "2"],
    "compare what cannot be read": ["compare", "torn", "lost"],
    "a page": ["inspect", "\x1b", "1", "torn", "-f", "html"],
    "a page of capacity": ["capacity", "1", "-f", "html"],
    "a page of a kernel": ["kernel", "1", "-f", "html"],
    "a page of two": ["compare", "1", "\x1b", "-f", "html"],
    "a picture": ["kernel", "1", "-f", "svg"],
}


def arguments_of(case: str) -> list[str]:
    files = {"1", "2", "3", "\x1b", "torn", "unknown", "lost", "empty"}
    return [named(word) if word in files else word for word in CASES[case]]


@pytest.mark.one_in(22)
@pytest.mark.parametrize("color", ["never", "always"])
@pytest.mark.parametrize("case", CASES)
def test_no_report_and_no_error_acts_on_a_terminal(
    case: str, color: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if color == "never":
        monkeypatch.setenv("COLUMNS", "5000")
    code, out, err = run(*arguments_of(case), "--color", color)
    assert code in (0, 1, 2)
    assert out or err
    assert "crashed" not in err
    assert_harmless(out, coloured=color == "always")
    assert_harmless(err, coloured=False)
    if color == "never":  # where no line is broken, a name stays within its own
        assert r"\u003a" not in out + err
    if case != "compare a run":  # which shows labels alone
        assert "λ層🙂" in COLOUR.sub("", out + err).replace("\n", "").replace(" ", ""), "what is no danger stays"


@pytest.mark.one_in(7)
@pytest.mark.parametrize("form", formats())
def test_every_format_is_harmless_on_the_screen_and_in_a_file(form: str, run: Run, folder: Path) -> None:
    files = [named(start) for start in ("\x1b", "1", "torn", "lost", "unknown")]
    code, out, _ = run("check", *files, "-f", form, "--color", "always")
    assert code == 2
    assert_harmless(out, coloured=form == "text", commands=form == "github")
    run("check", *files, *(["-o", "file"] if form == "text" else ["-q", "--also", f"{form}=file"]))
    written = Path("file").read_bytes().decode()
    assert_harmless(written, commands=form == "github")
    if form in ("json", "jsonl", "sarif"):
        documents = [json.loads(line) for line in out.splitlines()] if form == "jsonl" else [json.loads(out)]
        told = set(strings(documents))
        assert f"{DEEP}.1{DEEP}.1.mixer" in told, "names are read back exactly"
        assert form == "sarif" or set(files) - {named("lost")} <= told  # an index is read as its folder
    if form == "junit":
        assert ElementTree.fromstring(out.encode()) is not None


@pytest.mark.one_in(9)
@pytest.mark.parametrize("case", [case for case in CASES if case != "check"])
def test_every_json_document_is_harmless_and_exact(case: str, run: Run, folder: Path) -> None:
    _, out, err = run(*arguments_of(case), "-f", "json")
    assert_harmless(out)
    assert_harmless(err)
    if out:
        assert any(EVIL in text for text in strings(json.loads(out)))


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_what_is_said_of_a_file_of_kernels_is_harmless(ending: str, run: Run, folder: Path) -> None:
    for start in ("1", "\x1b"):
        _, out, err = run("kernel", named(start), "--length", 16, "-o", f"{start}{EVIL}{ending}", "--color", "always")
        assert out
        assert_harmless(out + err, coloured=True)
    code, out, err = run("kernel", named("2"), "-o", f"1{EVIL}{ending}")
    assert code == 2
    assert_harmless(err)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "arguments",
    [
        ["--map", "map"],
        ["--config", "set"],
        ["--baseline", "baseline"],
        ["--baseline", "absent\n::x::\x1b[1m"],
        ["-o", "none\x1b\n::x::/report"],
        ["--also", "json=\x1b\n::x::/report"],
        ["--also", "\x1b\n::x::=report"],
        ["--assume", "\x1b\n::x::=\u202e"],
        ["--select", "\x1b\n::x::"],
        ["--color", "\x1b\n::x::##[y]"],
        ["--length", "\x1b\n::x::\r::y::"],
        ["--\x1b\n::x::"],
        ["-f", "\r::x::\u202e"],
    ],
)
def test_no_setting_and_no_usage_error_acts_on_a_terminal(arguments: list[str], run: Run, folder: Path) -> None:
    arguments = [named(word) if word in ("map", "set", "baseline") else word for word in arguments]
    code, out, err = run("check", named("1"), *arguments)
    assert code == 2
    assert err
    assert "crashed" not in err
    assert_harmless(out + err)


def test_lists_and_pages_echo_no_argument_raw(run: Run, folder: Path) -> None:
    for command in (["families", EVIL], ["explain", EVIL], [EVIL], ["config", "show", "--config", EVIL]):
        code, out, err = run(*command)
        assert code == 2
        assert_harmless(out + err)


def test_settings_are_shown_as_settings_that_are_read_again(run: Run, folder: Path) -> None:
    Path(EVIL).mkdir()
    path = f"{EVIL}/ssmdiag.toml"
    key = json.dumps(EVIL, ensure_ascii=False).replace("\x7f", r"\u007f")
    Path(path).write_text(f"[per-layer-ignores]\n{key} = ['SSM2']\n")
    code, out, err = run("config", "show", "--config", path)
    assert (code, err) == (0, "")
    assert_harmless(out)
    assert tomllib.loads(out)["per-layer-ignores"] == {EVIL: ["SSM2"]}


def test_retrain_echoes_no_name_raw(run: Run, folder: Path) -> None:
    for arguments in (
        [named("1")], [f"empty{EVIL}"], ["--text", named("torn")], ["--data", f"{EVIL}.npz"], ["--param", EVIL],
        ["--task", EVIL], ["--model", f"{EVIL}:{EVIL}"], ["--output", f"{named('torn')}/x", "--steps", "1"],
    ):  # fmt: skip
        code, out, err = run("retrain", *arguments, "--no-plots")
        assert code == 2
        assert "crashed" not in err
        assert_harmless(out + err)


def test_a_crash_shows_its_traceback_and_obeys_nothing(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssmdiag.diagnosis

    def crash(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError(EVIL)

    monkeypatch.setattr(ssmdiag.diagnosis, "diagnose", crash)
    code, out, err = run("inspect", named("1"))
    assert code == 2
    assert "Traceback" in err
    assert "ZeroDivisionError" in err
    assert_harmless(out + err)


@pytest.mark.slow
def test_a_name_in_a_progress_bar_obeys_nothing(folder: Path) -> None:
    """A terminal of its own: bars move the cursor, the name in them does not."""
    code = "import time, sys\nfrom ssmdiag.cli import main, diagnosing\nfrom ssmdiag import diagnosis\n"
    code += "real = diagnosis.diagnose\ndef slow(*a, on_layer, **k):\n"
    code += "    time.sleep(1.1); on_layer(1, 3); time.sleep(0.3); on_layer(2, 3); time.sleep(0.3)\n"
    code += "    return real(*a, on_layer=on_layer, **k)\n"
    code += "diagnosis.diagnose = slow\nmain()"
    terminal, end = pty.openpty()
    got = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(terminal, 4096):
                got.extend(chunk)
        except OSError:
            pass  # the other end is closed

    reader = threading.Thread(target=read)
    process = subprocess.Popen(
        [sys.executable, "-c", code, "inspect", named("1")], stderr=end, stdout=subprocess.DEVNULL, cwd=folder,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "400"},
    )  # fmt: skip
    os.close(end)
    reader.start()
    assert process.wait(120) == 0
    reader.join(10)
    text = got.decode()
    assert r"\u001b[31m" in text, "the name is there, escaped"
    moves = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)
    assert acts(moves, "\n") == []
    assert "\x1b[31m\x1b]0" not in text
    assert "[bold]" in text
    assert not re.search(r"(?:^|\r|\n)\s*::", text)


def test_only_one_module_writes_to_the_streams() -> None:
    """What is printed elsewhere would go round the escape."""
    root = Path(__file__).parents[2] / "ssmdiag"
    direct = re.compile(r"\bprint\(|std(?:out|err)\.write|Console\(stderr|print_exc|click\.echo|typer\.echo")
    allowed = {"__init__.py": 1, "printable.py": 2, "cli/app.py": 1, "cli/messages.py": 1}  # examples; a version
    found = {}
    for path in sorted(root.rglob("*.py")):
        lines = [line for line in path.read_text().splitlines() if direct.search(line) and "out.print(" not in line]
        if lines:
            found[str(path.relative_to(root))] = lines
    assert {name: len(lines) for name, lines in found.items()} == allowed, found
