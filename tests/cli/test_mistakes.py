"""Natural mistakes: each answer names the thing, and a next command that works."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import termios
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssmdiag.cli import messages
from tests.cli.conftest import run as run

Run = Callable[..., tuple[int, str, str]]
SMALL = "--steps 1 --batch 2 --width 2 --modes 2 --samples 4 --length 16 --no-plots -q"
MISTAKES = {
    # what is typed: (what the answer names, the next command it ends in; None: prose)
    "model.safetensors": ("model.safetensors", "ssmdiag inspect model.safetensors"),
    "hf": ("hf is no command", "ssmdiag inspect hf"),
    "inspct model.safetensors": ("did you mean inspect", "ssmdiag inspect model.safetensors"),
    "horizon": ("no command horizon", "ssmdiag explain horizon"),
    "SSM404": ("no command SSM404", "ssmdiag explain SSM404"),
    "inspect": ("needs a PATH", "ssmdiag inspect model.safetensors"),
    "inspect modle.safetensors": ("modle.safetensors", "ssmdiag inspect model.safetensors"),
    "inspect empty": ("without a checkpoint", None),
    "inspect runs": ("runs", "ssmdiag inspect runs/a"),
    "inspect hf/config.json": ("config.json is settings", "ssmdiag inspect hf"),
    "inspect state-spaces/mamba-130m-hf": ("state-spaces/mamba-130m-hf", None),
    "inspect model.zip": ("model.zip is a zip archive", None),
    "inspect hf/optimizer.pt": ("state of an optimiser", "ssmdiag inspect hf"),
    "inspect '$DESK/model.safetensors'": ("without the quotes", "ssmdiag inspect ./model.safetensors"),
    "inspect ' model.safetensors'": ("without the quotes", "ssmdiag inspect model.safetensors"),
    "explain --all": ("explain has no option --all", "ssmdiag explain --help"),
    "families list": ("is called list", "ssmdiag families"),
    "inspect my model.safetensors": ("needs quotes", "ssmdiag inspect 'my model.safetensors'"),
    "capacity my model.safetensors": ("needs quotes", "ssmdiag capacity 'my model.safetensors'"),
    "capacity model.safetensors run": ("takes one PATH", "ssmdiag capacity model.safetensors"),
    "inspect --lenght 64 model.safetensors": ("--length", "ssmdiag inspect --length 64 model.safetensors"),
    "inspect --select SSM1 model.safetensors": ("check has it", "ssmdiag check --select SSM1 model.safetensors"),
    "check --fail warning model.safetensors": ("--fail-on", "ssmdiag check --fail-on warning model.safetensors"),
    "check --fail-on=warn model.safetensors": ("warn", "ssmdiag check --fail-on=warning model.safetensors"),
    "inspect --format jsn model.safetensors": ("jsn", "ssmdiag inspect --format json model.safetensors"),
    "inspect -fjsn model.safetensors": ("jsn", "ssmdiag inspect -fjson model.safetensors"),
    "--json inspect model.safetensors": ("comes after it", "ssmdiag inspect model.safetensors --json"),
    "inspect --length -5 model.safetensors": ("--length: -5", "ssmdiag inspect --help"),
    "inspect --context many model.safetensors": ("--context: many", "ssmdiag inspect --help"),
    "inspect --length": ("needs STEPS", "ssmdiag inspect --help"),
    "inspect --assume dt_transfrom=exp model.safetensors": (
        "dt_transfrom", "ssmdiag inspect --assume dt_transform=exp model.safetensors",
    ),
    "inspect --device cuda model.safetensors": ("cuda", "ssmdiag inspect --device cpu model.safetensors"),
    "inspect --device gpux model.safetensors": ("gpux", "ssmdiag inspect --help"),
    "compare model.safetensors": ("one checkpoint alone", "ssmdiag inspect model.safetensors"),
    "kernel model.safetensors --layer layer.1": ("layer.1", "ssmdiag kernel model.safetensors --layer layers.1"),
    "watch model.safetensors": ("is a file", "ssmdiag inspect model.safetensors"),
    "check --ignore step-out-of-rang model.safetensors": (
        "step-out-of-rang", "ssmdiag check --ignore step-out-of-range model.safetensors",
    ),
    "explain horizn": ("horizn", "ssmdiag explain horizon"),
    "explain SSM999": ("SSM999", "ssmdiag explain"),
    "config sho": ("did you mean show", "ssmdiag config show"),
    f"retrain --task lf-pol {SMALL}": ("lf-pol", f"ssmdiag retrain --task lf-poly {SMALL}"),
    f"retrain --param expp {SMALL}": ("expp", f"ssmdiag retrain --param exp {SMALL}"),
    f"retrain --modle s4d {SMALL}": ("--modle", f"ssmdiag retrain --model s4d {SMALL}"),
    "retrain model.safetensors": ("model.safetensors", None),
    "'inspect model.safetensors'": ("the quotes", "ssmdiag inspect model.safetensors"),
    "check model.safetensors --severity warning": ("--fail-on", "ssmdiag check model.safetensors --fail-on warning"),
    "check model.safetensors --disable SSM404": ("--ignore", "ssmdiag check model.safetensors --ignore SSM404"),
    "check model.safetensors --rule=SSM404": ("--select", "ssmdiag check model.safetensors --select=SSM404"),
    "check model.safetensors --strict": ("--fail-on warning", "ssmdiag check model.safetensors --fail-on warning"),
    "check model.safetensors --sarif": ("--format sarif", "ssmdiag check model.safetensors --format sarif"),
    "inspect model.safetensors --seq_len 4096": ("--length", "ssmdiag inspect model.safetensors --length 4096"),
    "inspect model.safetensors --output-format csv": ("--format", "ssmdiag inspect model.safetensors --format csv"),
    "inspect model.safetensors --html": ("--format html", "ssmdiag inspect model.safetensors --format html"),
    "inspect model.safetensors --layers 1": ("--layers", "ssmdiag inspect --help"),
    "inspect --path model.safetensors": ("without one", "ssmdiag inspect model.safetensors"),
    "inspect --model=model.safetensors": ("without one", "ssmdiag inspect model.safetensors"),
    "inspect model.safetensors -length 4k": ("--length", "ssmdiag inspect model.safetensors --length 4k"),
    "inspect model.safetensors -format csv": ("--format", "ssmdiag inspect model.safetensors --format csv"),
    "inspect -help": ("did you mean --help", "ssmdiag inspect --help"),
    "capacity model.safetensors --state-dtype bfloat16": (
        "did you mean bf16", "ssmdiag capacity model.safetensors --state-dtype bf16",
    ),
    "kernel model.safetensors 1": ("1 is too much", "ssmdiag kernel model.safetensors --layer 1"),
    "kernel model.safetensors --layer 1 --channel 500": (
        "channels 0 to 3", "ssmdiag kernel model.safetensors --layer 1 --channel 3",
    ),
    "kernel model.safetensors -o k.npy": (".npz", "ssmdiag kernel model.safetensors -o k.npz"),
    "rules SSM404": ("SSM404 is too much", "ssmdiag explain SSM404"),
    "families mmaba": ("called mmaba", "ssmdiag families mamba"),
    "families gpt2": ("called gpt2", "ssmdiag families"),
    "version": ("no command version", "ssmdiag --version"),
    "diff run/step-10.safetensors run/step-20.safetensors": (
        "did you mean compare", "ssmdiag compare run/step-10.safetensors run/step-20.safetensors",
    ),
    "diagnose model.safetensors": ("did you mean inspect", "ssmdiag inspect model.safetensors"),
    "lint model.safetensors --fail-on warning": (
        "did you mean check", "ssmdiag check model.safetensors --fail-on warning",
    ),
    "plot model.safetensors --layer 0": ("did you mean kernel", "ssmdiag kernel model.safetensors --layer 0"),
    "models": ("did you mean families", "ssmdiag families"),
    "inspect model.safetensors -o out.pdf": ("no .pdf", "ssmdiag inspect model.safetensors -o out.html"),
    "check model.safetensors --output=out.png": ("no .png", "ssmdiag check model.safetensors --output=out.html"),
    "inspect model.safetensors -o out.json -f html": (
        ".json is json", "ssmdiag inspect model.safetensors -o out.html -f html",
    ),
    "kernel model.safetensors --layer 9": ("no such layer", "ssmdiag kernel model.safetensors --layer 0"),
    "kernel model.safetensors --layer -1": ("no such layer", "ssmdiag kernel model.safetensors --layer 1"),
    "compare model.safetensors model.safetensors": (
        "model.safetensors is given twice", "ssmdiag inspect model.safetensors",
    ),
    "compare run run/step-20.safetensors": ("the same checkpoint", "ssmdiag inspect run/step-20.safetensors"),
    "probe": ("there is no model", None),
    "probe hf": ("nothing to show", None),
    "probe hf some words": ("some words is too much", None),
    "inspect run/step-11.safetensors": ("did you mean step-10", "ssmdiag inspect run/step-10.safetensors"),
    "inspect hf:state-spaces/mamba-130m": ("hf:state-spaces", None),
    "inspect huggingface.co/state-spaces/mamba-130m": ("huggingface.co", None),
}  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as users have them, and the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DESK", ".")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("empty", "run", "hf", "runs/a"):
        Path(name).mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(2):
        state |= {
            f"layers.{layer}.A_log": torch.rand(4, 2, generator=generator),
            f"layers.{layer}.dt_proj.bias": torch.rand(4, generator=generator) - 4,
            f"layers.{layer}.dt_proj.weight": torch.rand(4, 1, generator=generator),
            f"layers.{layer}.x_proj.weight": torch.rand(5, 4, generator=generator),
        }
    names = ("model", "my model", "run/step-10", "run/step-20", "hf/model", "runs/a/model")
    for name in names:
        save_file(state, f"{name}.safetensors")
    Path("hf/config.json").write_text(json.dumps({"model_type": "mamba"}))
    with zipfile.ZipFile("model.zip", "w") as archive:
        archive.write("model.safetensors")
    torch.save({"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
               "hf/optimizer.pt")  # fmt: skip
    return tmp_path


def told(answer: tuple[int, str, str]) -> str:
    return answer[2] + answer[1]


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_named_with_a_next_command_that_works(typed: str, desk: Path, run: Run) -> None:
    names, then = MISTAKES[typed]
    answer = run(*shlex.split(typed))
    assert answer[0] == 2
    assert answer[2].startswith("error: ") or "next: " in answer[2]
    assert names in " ".join(told(answer).split())
    (advice,) = re.findall(r"^ *next: (.*(?:\n {4}.*)*)$", told(answer), re.MULTILINE)
    advice = " ".join(advice.split())
    assert "Error" not in told(answer)
    assert "Value error" not in told(answer)
    if then is None:
        assert re.search(r"ssmdiag|ls|python -m zipfile|package\.module", advice)
    else:
        assert advice.removesuffix(" reports on one.").endswith(then)
        code, _, errors = run(*shlex.split(then)[1:])
        assert code in (0, 1), errors


@pytest.mark.parametrize("columns", [40, 80])
def test_errors_fit_the_screen_and_break_no_name(
    columns: int, desk: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = "a_block_with_a_long_name.of_the_mixer.log_of_the_decay_of_the_gate"
    save_file({gate: torch.zeros(4), "nu_log": torch.zeros(8), "theta_log": torch.zeros(8)}, "unknown.safetensors")
    typed = ("inspect unknown.safetensors", "inspect empty", "kernel model.safetensors --layer l", "inspect modle.pt")
    for mistake in (*typed, "inspect my model.safetensors", "inspect --assume dt_transfrom=exp model.safetensors"):
        whole = run(*shlex.split(mistake))[2].partition("\n\n")  # no terminal: each line of the message is one
        with monkeypatch.context() as terminal:
            terminal.setattr(messages, "width_of_messages", lambda: columns)
            folded = run(*shlex.split(mistake))[2].partition("\n\n")
        assert " ".join(folded[0].split()) == " ".join(whole[0].split()), "no word is broken or lost"
        assert folded[2] == whole[2], "a text to copy is as it was"
        for line in folded[0].splitlines():
            assert len(line) < columns or "ssmdiag " in line or len(line.split()) == 1


def test_a_terminal_of_fifty_columns_is_written_to_in_fifty(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (25, 50))
    with os.fdopen(end, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        assert messages.width_of_messages() == 50
        assert messages.wrapped("error: " + 15 * "word ").splitlines()[1] == " ".join(7 * ["word"])
        assert messages.wrapped("error: /" + 60 * "a" + ": is not there.").splitlines()[0].startswith("error: /")
    os.close(terminal)


def test_a_file_that_is_probed_names_the_model_beside_it(desk: Path, run: Run) -> None:
    Path("book.txt").write_text("a text")
    beside = run("probe", "hf/model.safetensors", "--text", "book.txt")[2]
    assert "is a file" in beside
    assert "next: ssmdiag probe hf --text book.txt" in beside


def test_a_text_after_a_probed_model_is_given_to_text(desk: Path, run: Run) -> None:
    Path("book.txt").write_text("a text")
    assert "next: ssmdiag probe hf --text book.txt" in run("probe", "hf", "book.txt")[2]
    assert "next: ssmdiag probe hf --text FILE" in run("probe", "hf", "some words")[2]


@pytest.mark.parametrize("before", ["hf:", "huggingface.co/", "hf.co/", "hf:/"])
def test_a_model_on_the_hub_is_known_however_it_is_written(before: str, desk: Path, run: Run) -> None:
    assert "ssmdiag inspect hf://org/model" in run("inspect", f"{before}org/model")[2]


def test_the_nearest_of_numbered_checkpoints_is_suggested(desk: Path, run: Run) -> None:
    for step in (100, 200, 500, 1000):
        Path(f"trainer/checkpoint-{step}").mkdir(parents=True)
    assert "did you mean checkpoint-100, checkpoint-200" in run("inspect", "trainer/checkpoint-99")[2]
    assert "did you mean checkpoint-1000" in run("inspect", "trainer/checkpoint-990")[2]


def test_rules_are_given_with_commas_or_as_numbers_too(desk: Path, run: Run) -> None:
    for count, selected in ((2, "ssm404,205"), (1, "404,")):
        _, out, _ = run("check", "model.safetensors", "--select", selected)
        assert f"; {count} rule" in out
    assert run("check", "model.safetensors", "--ignore", "SSM404, 205")[0] in (0, 1)
    assert "'nothing' is not a rule" in run("check", "model.safetensors", "--ignore", "SSM404,nothing")[2]


def test_help_has_its_own_help(run: Run) -> None:
    assert run("help", "help") == run("--help")


def test_other_spellings_are_the_same_command(desk: Path, run: Run) -> None:
    plain = run("inspect", "model.safetensors", "--length", "4096", "--format", "json")
    steady = re.compile(r'"cpu_seconds": [\d.e-]+|"seconds": [\d.e-]+')
    other = run("inspect", "model.safetensors", "--context", "4k", "--json", "--no-color")
    assert plain[0] == other[0] == 0
    assert steady.sub("", plain[1]) == steady.sub("", other[1])


def test_a_flag_is_left_alone_where_it_is_a_value_or_after_two_dashes(desk: Path, run: Run) -> None:
    save = Path("model.safetensors").read_bytes()
    Path("--json").write_bytes(save)
    code, out, _ = run("inspect", "--no-plots", "--", "--json")
    assert code == 0
    assert "\n--json  " in out
    Path("--json").unlink()
    run("inspect", "model.safetensors", "-o", "--json")
    assert not Path("--json").exists() or b"layers" in Path("--json").read_bytes()


@pytest.mark.parametrize("pattern", ["run/*.safetensors", "~/run/step-*.safetensors"])
def test_what_a_shell_left_unexpanded_is_expanded(
    pattern: str, desk: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(desk))
    code, out, _ = run("inspect", pattern, "--json")
    assert code == 0
    assert len(json.loads(out)["checkpoints"] if isinstance(json.loads(out), dict) else json.loads(out)) == 2


def test_a_name_with_a_star_in_it_is_itself(desk: Path, run: Run) -> None:
    os.rename("model.safetensors", "m*.safetensors")
    code, out, _ = run("inspect", "m*.safetensors", "--no-plots")
    assert code == 0
    assert "\nm*.safetensors  " in out


def test_what_is_written_is_not_a_file_that_a_pattern_matches(desk: Path, run: Run) -> None:
    Path("report1.json").write_text("{}")
    run("inspect", "model.safetensors", "-o", "report?.json")
    assert Path("report1.json").read_text() == "{}"


@pytest.mark.parametrize("typed", [["help"], ["help", "check"], ["help", "config", "show"]])
def test_help_is_a_command(typed: list[str], run: Run) -> None:
    assert run(*typed) == run(*typed[1:], "--help")


def test_a_secret_in_an_address_is_not_repeated(desk: Path, run: Run) -> None:
    address = "https://me:secret@example.org/m.pt?signature=secret"
    code, out, errors = run("inspect", address, "--lenght", "4")
    assert code == 2
    assert "--length 4" in errors
    more = run("capacity", "model.safetensors", address)
    assert more[0] == 2
    assert "example.org" in more[2]
    assert "secret" not in out + errors + more[2]
