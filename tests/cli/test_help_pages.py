"""--help: what it lists is there, its examples run, and everything fits 80 columns."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ssmdiag.cli.app import COMMANDS, command_named
from ssmdiag.cli.help_pages import EXAMPLES, EXITS, OTHER, SUMMARIES, groups_of
from tests.cli.test_mistakes import desk as desk

Run = Callable[..., tuple[int, str, str]]
SHORTER = {
    "watch": "--idle 0.01 --interval 0.1",
    "retrain": "--steps 1 --batch 2 --width 2 --modes 2 --samples 4 --context 16 --no-plots",
}
"""What makes the example of a long command a short one."""
NAMES = [*(name for name in COMMANDS if name != "config"), "config show", ""]


@pytest.mark.parametrize("name", NAMES)
def test_every_page_has_examples_that_fit_and_exit_codes(name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, page, _ = run(*name.split(), "--help")
    assert code == 0
    assert max(map(len, page.splitlines())) <= 80
    assert "Examples:" in page
    assert all(command in page for command, _ in EXAMPLES[name])
    assert ("Exit codes:" in page) == (name in EXITS)
    assert not {"<int", "<str>", "<float", "<Path>", "list["} & {word for word in page.split() if word[0] in "<l"}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.slow] if "--seed" in command else [])
        for name, rows in EXAMPLES.items()
        if name != "probe"
        for command, _ in rows
    ],
)
def test_examples_run(command: str, desk: Path, run: Run) -> None:
    saved = (desk / "model.safetensors").read_bytes()
    for name in ("runs/step-10", "runs/step-20", "original", "converted"):
        (desk / f"{name}.safetensors").write_bytes(saved)
    (desk / "runs/a/model.safetensors").unlink()
    (desk / "runs/a").rmdir()
    words = shlex.split(command.partition(" > ")[0])[1:]
    code, out, errors = run(*words, *shlex.split(SHORTER.get(words[0], "")))
    assert code == 0 or (code == 1 and "check" in words), out + errors


def test_every_command_has_a_line(run: Run) -> None:
    assert list(SUMMARIES) == list(COMMANDS)
    assert all(len(line) <= 66 for line in SUMMARIES.values())


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "config"])
def test_groups_name_options_that_there_are_and_leave_few_out(name: str) -> None:
    names = {param.name for param in command_named(name).params}
    left = names - {option for options in groups_of(name).values() for option in options}
    options = {param.name for param in command_named(name).params if param.param_type_name == "option"}
    assert len(left & options) <= 2, f"in the group {OTHER}: {sorted(left & options)}"


def test_the_options_of_retrain_are_in_groups_of_eight_or_fewer() -> None:
    own = [options for heading, options in groups_of("retrain").items() if heading != "Report"]
    assert sum(len(set(options) & {param.name for param in command_named("retrain").params}) for options in own) >= 24
    assert max(map(len, own)) <= 8


def test_probes_examples_parse() -> None:
    assert all(command_named("probe").parses(shlex.split(command)[2:]) for command, _ in EXAMPLES["probe"])
